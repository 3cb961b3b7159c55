"""pairs and reference log-probs -> policy. The reference model is never loaded here."""
