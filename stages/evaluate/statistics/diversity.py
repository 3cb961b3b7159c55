"""Does it write the same again and again?"""

from collections.abc import Hashable, Sequence


def distinct(sequences: Sequence[Sequence[Hashable]], n: int) -> float | None:
    """Different n-grams over all n-grams of the sequences (Li et al. 2016, 1510.03055); None where there is none.

    More text has lower values: compare sets of one size.
    """
    grams = [tuple(each[i : i + n]) for each in sequences for i in range(len(each) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
