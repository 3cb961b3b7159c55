"""The best evaluation of a run so far: what is exported, what is kept, and when training stops early."""

import math
from dataclasses import dataclass, replace

from stages.train.config import TrainConfig


@dataclass(frozen=True)
class Best:
    """Of the evaluations after step 0. The first one of several that are equal; one that is not finite is none."""

    step: int | None = None
    value: float | None = None  # of train.best_metric
    waited: int = 0  # evaluations since then

    def after(self, step: int, value: float, config: TrainConfig) -> "Best":
        """With the evaluation at `step` in it."""
        if math.isfinite(value) and (self.value is None or score(value, config) < score(self.value, config)):
            return Best(step, value)
        return replace(self, waited=self.waited + 1)

    def says_stop(self, config: TrainConfig) -> bool:
        return config.patience is not None and self.waited >= config.patience


def score(value: float, config: TrainConfig) -> float:
    """The lower the better."""
    return -value if config.best_is_highest else value
