"""How fast a stage is: as earlier artifacts have been, else by a peak and how much of it is reached."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

# Of a peak, as measured on CPUs (tests/benchmarks/README.md). Of GPUs nothing is measured: what others report.
UTILISATION = {"train": 0.4, "score": 0.6, "sample": 0.3}
# Seconds before the first row or step.
START = {"shard": 9.0, "score": 12.0, "train": 15.0, "sample": 60.0, "taken over": 4.0}
SIZE = 1024  # of the product by which a CPU's peak is measured


@dataclass(frozen=True)
class Seen:
    """What an earlier artifact took."""

    amount: float  # operations, or rows
    seconds: float  # all in all
    start: float  # of these, before and after the work itself


@dataclass(frozen=True)
class Speed:
    """`a second`: operations, or rows, of all workers together."""

    start: float
    rate: float
    basis: str
    error: float | None = None  # the largest factor by which earlier artifacts were missed, each by the others

    def seconds(self, amount: float) -> float:
        return self.start + amount / self.rate


def of_earlier(seen: list[Seen]) -> Speed | None:
    """None where there is none."""
    if not seen:
        return None
    start = statistics.median(each.start for each in seen)
    rate = statistics.median(each.amount / max(each.seconds - each.start, 1e-3) for each in seen)
    error = None
    if len(seen) > 1:
        told = [(of_earlier([*seen[:i], *seen[i + 1 :]]), each) for i, each in enumerate(seen)]
        factors = [speed.seconds(each.amount) / each.seconds for speed, each in told if speed is not None]
        error = max(max(factor, 1 / factor) for factor in factors)
    many = f"{len(seen)} earlier artifacts" if len(seen) > 1 else "one earlier artifact"
    said = f"by {many} of this store"
    said += f", each told by the others within a factor of {error:.2f}" if error else ", whose error is not known"
    return Speed(start, rate, said, error)


def by_peak(stage: str, peak: float, how: str) -> Speed:
    """`peak`: FLOP/s of all devices."""
    share, error = UTILISATION[stage], "3, with few answers by more" if stage == "sample" else "2"
    said = f"by {how}, of which {share:.0%} is taken to be reached; it may be off by {error}"
    return Speed(START[stage], peak * share, said)


# Parts whose pairs are all known are read and written by actors that load no model.
TAKEN_OVER = Speed(START["taken over"], math.inf, "by what it takes to start: all is known from earlier artifacts")


@cache
def cpu_peak() -> tuple[float, str]:
    """(FLOP/s of all cores, in words): the best of a few products in float32."""
    import numpy as np

    one = np.ones((SIZE, SIZE), np.float32)
    best = min(_timed(lambda: one @ one) for _ in range(4))
    return 2 * SIZE**3 / best, f"a product measured here, {2 * SIZE**3 / best / 1e9:.0f} GFLOP/s"


def _timed(do: Callable[[], Any]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began
