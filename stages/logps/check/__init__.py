"""Which layout a model can have, found out on a small copy of its architecture."""
