"""What leaves the store for other tools: pairs with log-probs as TRL reads them, averages of policies."""
