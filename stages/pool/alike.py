"""Where rows of the same id stand in artifacts of the same kind."""

import math


def alike(number: int, parts: int, others: int) -> range:
    """Which of `others` parts may hold rows of part `number` of `parts`: a row stands in that of its id modulo their
    number.
    """
    common = math.gcd(parts, others) or 1
    return range(number % common, others, common)
