"""How many pairs fit into one forward pass."""

import numpy as np


def fill(lengths: np.ndarray, max_tokens: int) -> list[slice]:
    """Cut a sequence of pairs with `lengths` [b] tokens into runs of at most `max_tokens`, or of one pair."""
    pieces, start = [], 0
    while start < len(lengths):
        totals = np.cumsum(lengths[start:])
        fitting = max(1, int(np.searchsorted(totals, max_tokens, side="right")))
        pieces.append(slice(start, start + fitting))
        start += fitting
    return pieces
