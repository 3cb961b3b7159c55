"""Object storage, where finished artifacts, triples and models may lie: what is done there otherwise than on a disk."""
