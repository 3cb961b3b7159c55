"""Which pairs, when, and from where: the order of training, windows of parts, and the share of each rank."""
