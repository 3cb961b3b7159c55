"""Expected reward against KL: what a method reaches, and on how much of the range it reaches more than another."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_PLACES = 200  # of the range, at which two curves are compared


class Points(NamedTuple):
    """Of trained policies: KL(policy || reference), nats, and mean reward."""

    kl: Sequence[float]
    reward: Sequence[float]


def reached(points: Points, start: float, at: np.ndarray) -> np.ndarray:
    """The highest reward within a KL of `at` [n] of mixtures of these policies and the reference, whose reward is
    `start`.

    To write with one policy now, with another one then, has the mean of their rewards, and at most the mean of their
    KL, which is convex. So a method reaches the upper concave hull of its points and of (0, `start`).
    """
    corners = [(0.0, start)]
    for kl, reward in sorted(zip(points.kl, points.reward, strict=True)):
        kl = max(kl, 0.0)  # an estimate may be below
        if reward <= corners[-1][1] or not math.isfinite(kl):
            continue
        if kl == corners[-1][0]:
            corners.pop()
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) <= _slope(corners[-1], (kl, reward)):
            corners.pop()
        corners.append((kl, reward))
    return np.interp(at, *zip(*corners, strict=True))


def _slope(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def range_of(one: Points, other: Points) -> float:
    """The KL to which both have gone."""
    return max(0.0, min(max(one.kl), max(other.kl)))


def share(one: Points, other: Points, start: float) -> float:
    """Of the range of KL to which both have gone, the share at which `one` reaches as much as `other` or more."""
    at = np.linspace(0, range_of(one, other), _PLACES + 1)[1:]
    return float((reached(one, start, at) >= reached(other, start, at)).mean())


def best_of(rewards: np.ndarray, n: int) -> np.ndarray:
    """[p, m] rewards of m samples of p prompts -> [p]: that of the best of n, the mean over all choices of n."""
    many = rewards.shape[1]
    chances = [math.comb(i, n - 1) / math.comb(many, n) for i in range(many)]  # that the i-th from below is the best
    found: np.ndarray = np.sort(rewards, 1) @ np.array(chances)
    return found


def kl_of_best(n: int) -> float:
    """Nats, at most (Beirami et al. 2024, 2401.01879): it is less where samples are alike."""
    return math.log(n) - (n - 1) / n
