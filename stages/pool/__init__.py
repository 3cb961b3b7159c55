"""Not a stage: how a pool of actors works through parts, and what it does of rows that kill them."""
