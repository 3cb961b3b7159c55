"""The order in which pairs are trained on: a pure function of the seed and the step."""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Stretch(NamedTuple):
    """A piece of a batch that lies in one window."""

    epoch: int
    window: int  # its number in the epoch
    begin: int  # in the window, pairs
    end: int


class Windows(NamedTuple):
    """Of one epoch."""

    parts: list[np.ndarray]  # of each window
    starts: np.ndarray  # [windows + 1] int64, in the epoch, pairs


class Order:
    """An endless stream of epochs. An epoch shuffles the parts, cuts them into windows, and shuffles the pairs of each.

    So a set of any size is read in long stretches, and a batch touches one window, or few. A set that fits into one
    window is shuffled as a whole. Pairs are numbered through the parts: those of part p from `starts[p]` on.
    """

    def __init__(self, counts: np.ndarray, seed: int, global_batch: int, window: int):
        """`counts` [parts]: pairs in each. `window`: pairs that a window has at least, but for an epoch's last one."""
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.num_pairs = int(self.starts[-1])
        self._counts, self._seed, self._global_batch, self._window = counts, seed, global_batch, window
        self._windows = lru_cache(2)(self._cut)
        self._pairs = lru_cache(2)(self._shuffle)

    def batch_at(self, step: int) -> np.ndarray:
        """Numbers of the pairs of optimizer step `step` (from 1), [global_batch] int64. Costs the same at any step."""
        return np.concatenate(
            [self._pairs(epoch, window)[begin:end] for epoch, window, begin, end in self._stretches(step)]
        )

    def parts_at(self, step: int) -> list[int]:
        """The parts of the windows that a step touches, and of the window that comes after."""
        stretches = self._stretches(step)
        epoch, window = stretches[-1].epoch, stretches[-1].window + 1
        if window == len(self._windows(epoch).parts):
            epoch, window = epoch + 1, 0
        near = [(each.epoch, each.window) for each in stretches] + [(epoch, window)]
        return list(
            dict.fromkeys(part for epoch, window in near for part in self._windows(epoch).parts[window].tolist())
        )

    def _stretches(self, step: int) -> list[Stretch]:
        position, last = (step - 1) * self._global_batch, step * self._global_batch
        found = []
        while position < last:
            epoch, offset = divmod(position, self.num_pairs)
            starts = self._windows(epoch).starts
            window = int(np.searchsorted(starts, offset, side="right")) - 1
            length = min(int(starts[window + 1]) - offset, last - position)
            begin = offset - int(starts[window])
            found.append(Stretch(epoch, window, begin, begin + length))
            position += length
        return found

    def _cut(self, epoch: int) -> Windows:
        filled = np.flatnonzero(self._counts)
        parts = np.random.default_rng([self._seed, epoch]).permutation(filled)
        ends = np.cumsum(self._counts[parts])
        # A part belongs to the window that is not yet full where the part begins.
        cuts, full = [0], self._window
        for number, end in enumerate(ends.tolist()):
            if end >= full:
                cuts.append(number + 1)
                full = end + self._window
        if cuts[-1] != len(parts):
            cuts.append(len(parts))
        starts = np.concatenate([[0], ends])[cuts]
        return Windows([parts[a:b] for a, b in pairwise(cuts)], starts)

    def _shuffle(self, epoch: int, window: int) -> np.ndarray:
        # In the order of their numbers before: so that a set in one window is shuffled the same however it is cut.
        parts = np.sort(self._windows(epoch).parts[window])
        numbers = np.concatenate([np.arange(self.starts[part], self.starts[part + 1]) for part in parts])
        return np.random.default_rng([self._seed, epoch, window]).permutation(numbers)
