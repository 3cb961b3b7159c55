"""What training takes of each worker's memory, by formula, before anything runs."""
