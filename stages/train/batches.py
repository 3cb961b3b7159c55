"""Which pairs a step trains on, and who computes them: pure functions of seed, step, rank and sizes."""

import math
from typing import NamedTuple

import numpy as np

from stages.logps.budget import fill
from stages.train.config import TrainConfig


class Share(NamedTuple):
    """What one rank computes in one forward pass. All ranks have equally many, because FSDP moves in step."""

    rows: np.ndarray  # [b] int64 indices of pairs
    weights: np.ndarray  # [b] float32: 1, or 0 where a pair only keeps this rank in step with the others


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


def shares(batch: np.ndarray, lengths: np.ndarray, rank: int, world: int, max_tokens: int) -> list[Share]:
    """Rank's part of a batch in micro-batches of at most `max_tokens` (one pair may be more, alone).

    `lengths` [b] are the tokens of each pair. Pairs go round the ranks from the longest down, so that ranks have like
    work.
    """
    order = np.argsort(-lengths, kind="stable")
    by_rank = []
    for own in (order[r::world] for r in range(world)):
        by_rank.append([own[piece] for piece in fill(lengths[own], max_tokens)])
    idle = Share(batch[order[-1:]], np.zeros(1, np.float32))  # the shortest pair, without weight
    mine = [Share(batch[piece], np.ones(len(piece), np.float32)) for piece in by_rank[rank]]
    return mine + [idle] * (max(map(len, by_rank)) - len(mine))
