"""Do implicit rewards say what the labels say: in their order, in their size, and as probabilities?"""

from typing import Any

import numpy as np

from stages.evaluate.statistics.bootstrap import Estimate, bootstrap

_BINS = 10  # of confidences from 1/2 to 1


def correlations(margins: np.ndarray, grades: np.ndarray, clusters: np.ndarray) -> dict[str, Estimate]:
    """Of implicit reward margins [n] with the margins [n] that the triples state: Pearson's and Spearman's.

    Nothing where one of the two is the same everywhere.
    """
    if len(margins) < 3 or not (np.ptp(margins) and np.ptp(grades)):
        return {}
    found = bootstrap(
        lambda weights: np.stack([pearson(margins, grades, weights), spearman(margins, grades, weights)], 1), clusters
    )
    return dict(zip(("pearson", "spearman"), found, strict=True))


def pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[n], [n] or [r, n] each, and weights [r, n] -> [r]; NaN where one of them does not vary."""
    total = weights.sum(1, keepdims=True)
    x = x - (weights * x).sum(1, keepdims=True) / total
    y = y - (weights * y).sum(1, keepdims=True) / total
    together, alone, other = ((weights * each).sum(1) for each in (x * y, x * x, y * y))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = np.where((alone > 0) & (other > 0), together / np.sqrt(alone * other), np.nan)
    return found


def spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's of the ranks that the rows have in each resample."""
    return pearson(ranks(x, weights), ranks(y, weights), weights)


def ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[n] and how often each row is there [r, n] -> [r, n], from 1; rows of one value share their mean rank."""
    _, places = np.unique(values, return_inverse=True)
    order = np.argsort(places, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(places[order])) + 1])
    times = np.add.reduceat(weights[:, order], starts, axis=1)  # of each value
    found: np.ndarray = (np.cumsum(times, 1) - (times - 1) / 2)[:, places]
    return found


def calibration(rewards: np.ndarray, clusters: np.ndarray) -> dict[str, Any]:
    """Of P(chosen is better) = sigmoid(`rewards`), the differences [n] of implicit rewards, beta times log-ratios.

    Either completion may stand first, so a pair is a prediction of confidence max(P, 1 - P), which is right where the
    reward of chosen is the greater; equal rewards are half right. `ece`: the expected calibration error, that is the
    mean over pairs of |right - confidence| of their bin, of ten equal ones (Guo et al. 2017, 1706.04599, equation 5).
    `bins`: of each that is not empty its lowest confidence, its pairs, their mean confidence, and the share that is
    right.
    """
    confidence = 1 / (1 + np.exp(-np.abs(rewards)))
    right = (np.sign(rewards) + 1) / 2
    numbers = np.minimum((2 * _BINS * (confidence - 0.5)).astype(int), _BINS - 1)
    member = (numbers[:, None] == np.arange(_BINS)).astype(np.float64)
    gaps = member * (right - confidence)[:, None]

    def ece(weights: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.abs(weights @ gaps).sum(1) / weights.sum(1)
        return found

    bins: list[dict[str, float]] = []
    for number in np.unique(numbers).tolist():
        own = numbers == number
        mean = {"confidence": float(confidence[own].mean()), "right": float(right[own].mean())}
        bins.append({"from": 0.5 + number / (2 * _BINS), "pairs": int(own.sum())} | mean)
    return {"ece": bootstrap(ece, clusters)[0], "bins": bins}
