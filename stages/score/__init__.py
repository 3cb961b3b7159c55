"""pairs -> log-probs of their completions under the frozen reference model, part for part."""
