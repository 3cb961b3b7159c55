"""The reward of imdb.yaml: the probability that a review is a positive one, by logistic regression on TF-IDF.

`weights.py`, which infra/frontier/reviews.py writes beside a copy of this file, holds what it has learnt. So that is a
part of the judge's identity.
"""

import math
import re
from collections import Counter
from itertools import pairwise

_WORD = re.compile(r"[a-z']+|[!?]")


def grams(text: str) -> Counter[str]:
    """How often each word and each two words in a row are there."""
    words = _WORD.findall(text.lower())
    return Counter([*words, *(f"{first} {second}" for first, second in pairwise(words))])


def positive(prompt: str, completion: str) -> float:
    """From 0 to 1, of prompt and completion together."""
    from weights import BIAS, WEIGHTS  # gram -> (inverse document frequency, weight)

    found = [
        ((1 + math.log(times)) * WEIGHTS[gram][0], WEIGHTS[gram][1])
        for gram, times in grams(prompt + completion).items()
        if gram in WEIGHTS
    ]
    norm = math.sqrt(sum(value * value for value, _ in found)) or 1.0
    return 1 / (1 + math.exp(-BIAS - sum(value * weight for value, weight in found) / norm))
