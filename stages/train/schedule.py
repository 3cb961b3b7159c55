"""The learning rate as a function of the step."""

import math

from stages.train.config import TrainConfig


def lr_at(step: int, total: int, config: TrainConfig) -> float:
    """Rate of optimizer step `step`, 1..total: a linear warmup, then constant, or down to what would be zero next."""
    warmup = math.ceil(config.warmup_fraction * total)
    if step <= warmup:
        return config.lr * step / warmup
    if config.schedule == "constant":
        return config.lr
    left = (total - step + 1) / (total - warmup)
    return config.lr * (left if config.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)
