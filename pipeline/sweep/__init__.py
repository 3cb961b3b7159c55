"""Many trainings of one recipe, in which a few fields differ; each is an ordinary artifact."""
