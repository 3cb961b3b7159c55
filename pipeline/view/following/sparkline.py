"""A curve in a line of text."""

import math
from collections.abc import Sequence
from itertools import pairwise

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """The means of `width` stretches, or each value where they are fewer; what is not finite is a blank."""
    count = min(width, len(values))
    cuts = [len(values) * number // count for number in range(count + 1)] if count else [0]
    stretches = [values[start:stop] for start, stop in pairwise(cuts)]
    means = [sum(each) / len(each) for each in stretches]
    known = [mean for mean in means if math.isfinite(mean)]
    if not known:
        return " " * len(means)
    low, high = min(known) / 2, max(known) / 2  # halves: their difference is finite
    step = (high - low) / (len(_BLOCKS) - 1) or 1.0
    return "".join(_BLOCKS[round((mean / 2 - low) / step)] if math.isfinite(mean) else " " for mean in means)
