"""How rows of the world become triples: a family of shapes a file."""
