"""What is said of held-out pairs: of all that were set apart, by the source they are from, and of each named set."""

from collections.abc import Callable

import numpy as np
import torch

from stages.errors import ContractError
from stages.train.objective.losses import Logps
from stages.train.objective.named.loss import Loss
from stages.train.objective.report import MOST_SOURCES, report, report_by_source
from stages.train.pairs.pair_set import PairSet

_APART = "eval"  # the split that is set apart from the training pairs; a named set is "eval/<name>"

Look = Callable[[PairSet], tuple[Logps, torch.Tensor]]  # all pairs of a set, and their losses


class HeldOut:
    """Sets by their split, none of them empty. Raises ContractError where a source has the name of a set."""

    def __init__(self, sets: dict[str, PairSet]):
        self.sets = sets
        self._sources: np.ndarray | None = None  # of those set apart, where they are from several
        if _APART in sets:
            sources = sets[_APART].sources(np.arange(len(sets[_APART])))
            if 1 < len(set(sources)) <= MOST_SOURCES:
                self._sources = sources
        names = [] if self._sources is None else [f"{_APART}/{name}" for name in set(self._sources)]
        if twice := sorted(set(names) & sets.keys()):
            raise ContractError(
                f"a source of training pairs and a held-out set have one name, {twice[0]!r}, so that their metrics "
                "would too. Rename one: shard.sources or shard.eval"
            )

    def metrics(self, look: Look, loss: Loss) -> dict[str, float]:
        """eval/.. of the pairs set apart, eval/<source>/.. of those from each source, where there are several, and
        eval/<name>/.. of each named set."""
        found: dict[str, float] = {}
        for split, pairs in self.sets.items():
            seen, losses = look(pairs)
            found |= _named(split, report(seen, losses, loss))
            if split == _APART and self._sources is not None:
                found |= _named(split, report_by_source(seen, losses, loss, self._sources))
        return found

    def close(self) -> None:
        for pairs in self.sets.values():
            pairs.close()


def _named(prefix: str, means: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in means.items()}
