"""Which pairs a step trains on, and who computes them: pure functions of seed, step, rank and sizes."""

import math
from typing import NamedTuple

import numpy as np

from stages.train.config import TrainConfig


class Share(NamedTuple):
    """What one rank computes in one forward pass. All ranks have equally many, because FSDP moves in step."""

    rows: np.ndarray  # [b] int64 indices of pairs
    weights: np.ndarray  # [b] float32: 1, or 0 where a pair only fills the ranks up to equal counts


def num_steps(num_pairs: int, config: TrainConfig) -> int:
    steps = math.ceil(config.epochs * num_pairs / config.global_batch)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def batch_at(step: int, seed: int, num_pairs: int, global_batch: int) -> np.ndarray:
    """The pairs of optimizer step `step` (from 1): a stretch of an endless stream of one permutation an epoch."""
    positions = np.arange((step - 1) * global_batch, step * global_batch)
    epochs, offsets = positions // num_pairs, positions % num_pairs
    batch = np.empty(global_batch, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([seed, int(epoch)]).permutation(num_pairs)
        batch[epochs == epoch] = order[offsets[epochs == epoch]]
    return batch


def shares(batch: np.ndarray, rank: int, world: int, size: int) -> list[Share]:
    """The stripe batch[rank::world] in micro-batches of `size`, filled up with weightless pairs to equal counts."""
    stripe = batch[rank::world]
    wanted = math.ceil(len(batch) / world)
    rows = np.concatenate([stripe, np.repeat(batch[:1], wanted - len(stripe))])
    weights = (np.arange(wanted) < len(stripe)).astype(np.float32)
    return [Share(rows[i : i + size], weights[i : i + size]) for i in range(0, wanted, size)]
