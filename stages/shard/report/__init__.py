"""What a person should know of a set before money is spent on it; facts of the manifest, and never of a pair."""
