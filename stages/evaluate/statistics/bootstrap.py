"""Intervals by the bootstrap: what a figure would be of other prompts of the same kind.

Prompts are drawn again with replacement, each with all of its samples, as samples of one prompt are not independent
(the cluster bootstrap; Davison and Hinkley, 1997, section 3.8). The interval is that of the percentiles.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
_RESAMPLES = 1000
_AT_ONCE = 1 << 22  # weights that are in memory together


class Estimate(NamedTuple):
    """A figure and its interval, which is None where there are fewer than two clusters to draw from."""

    value: float
    low: float | None = None
    high: float | None = None


Statistic = Callable[[np.ndarray], np.ndarray]  # weights of rows [r, n] -> the figure under each, [r] or [r, k]


def bootstrap(statistic: Statistic, clusters: np.ndarray, level: float = LEVEL, seed: int = 0) -> list[Estimate]:
    """Each of the k figures of `statistic` with its interval. `clusters` [n] says which rows belong together.

    Resamples of which a figure is not defined (NaN) do not count. Raises ValueError where there is no row.
    """
    if not len(clusters):
        raise ValueError("there is nothing to estimate of no rows")
    values = _columns(statistic(np.ones((1, len(clusters)))))[0]
    _, numbers = np.unique(clusters, return_inverse=True)
    if numbers.max() == 0:
        return [Estimate(float(value)) for value in values]
    found = np.concatenate([_columns(statistic(weights)) for weights in _weights(numbers, seed)])
    tails = [(1 - level) / 2, (1 + level) / 2]
    estimates = []
    for value, column in zip(values, found.T, strict=True):
        defined = column[~np.isnan(column)]
        bounds = np.quantile(defined, tails).tolist() if len(defined) else (None, None)
        estimates.append(Estimate(float(value), *bounds))
    return estimates


def means(columns: Mapping[str, np.ndarray], clusters: np.ndarray, level: float = LEVEL) -> dict[str, Estimate]:
    """The mean of each column [n], all of the same resamples."""
    table = np.stack([np.asarray(column, np.float64) for column in columns.values()], 1)
    found = bootstrap(lambda weights: weights @ table / weights.sum(1, keepdims=True), clusters, level)
    return dict(zip(columns, found, strict=True))


def ratio(above: np.ndarray, below: np.ndarray, clusters: np.ndarray, level: float = LEVEL) -> Estimate:
    """Sum over sum: so a long row counts for more than a short one."""
    return bootstrap(lambda weights: (weights @ above) / (weights @ below), clusters, level)[0]


def _weights(numbers: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """How often each row is drawn, [r, n], in pieces that fit into memory; the same at each call."""
    chance, count = np.random.default_rng(seed), int(numbers.max()) + 1
    size = max(1, _AT_ONCE // len(numbers))
    for start in range(0, _RESAMPLES, size):
        rows = min(size, _RESAMPLES - start)
        drawn = chance.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield times[:, numbers].astype(np.float64)


def _columns(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 2 else values[:, None]
