"""How many pairs fit into one forward pass."""

import numpy as np


def fill(lengths: np.ndarray, max_tokens: int) -> list[slice]:
    """Cut a sequence of pairs with `lengths` [b] tokens into runs of at most `max_tokens`, or of one pair."""
    ends = np.concatenate([[0], np.cumsum(lengths)])
    pieces, start = [], 0
    while start < len(lengths):
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + max_tokens, side="right")) - 1)
        pieces.append(slice(start, stop))
        start = stop
    return pieces
