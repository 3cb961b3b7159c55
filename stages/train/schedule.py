"""The learning rate as a function of the step."""

import math

from stages.train.config import TrainConfig


def lr_at(step: int, total: int, config: TrainConfig) -> float:
    """Rate of optimizer step `step`, 1..total: a linear warmup, then constant, or down to where it would be next.

    That is `min_lr_fraction` of `lr`.
    """
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil((config.warmup_fraction or 0.0) * total)
    if step <= warmup:
        return config.lr * step / warmup
    if config.schedule == "constant":
        return config.lr
    left = (total - step + 1) / (total - warmup)
    share = left if config.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
    return config.lr * (config.min_lr_fraction + (1 - config.min_lr_fraction) * share)
