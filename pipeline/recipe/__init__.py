"""A recipe (what) and a cluster file (where): read from YAML, checked, and explained where they are wrong."""
