"""prompts -> completions of one model or several, with their log-probs."""
