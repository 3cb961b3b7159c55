"""How many steps there are, and who computes which pairs of one: pure functions of rank and sizes."""

import heapq
import math
from typing import NamedTuple

import numpy as np

from stages.train.config import TrainConfig


class Share(NamedTuple):
    """What one rank computes in one forward pass. All ranks have equally many, because FSDP moves in step."""

    rows: np.ndarray  # [b] int64 indices of pairs
    weights: np.ndarray  # [b] float32: 1, or 0 where a pair only keeps this rank in step with the others


def num_steps(num_pairs: int, config: TrainConfig) -> int:
    steps = math.ceil(config.epochs * num_pairs / config.global_batch)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def shares(batch: np.ndarray, lengths: np.ndarray, rank: int, world: int, max_tokens: int) -> list[Share]:
    """Rank's part of a batch in micro-batches of at most `max_tokens` (one pair may be more, alone).

    `lengths` [b] are the tokens of each pair. All micro-batches of all ranks are about equally large, so that ranks
    wait little for each other, and the largest, which decides how much memory is needed, is small.
    """
    rounds = max(1, math.ceil(lengths.sum() / (world * max_tokens)))
    while not _fits(groups := _spread(lengths, world * rounds), lengths, max_tokens):
        rounds += 1
    idle = Share(batch[[lengths.argmin()]], np.zeros(1, np.float32))  # the shortest pair, without weight
    return [Share(batch[own], np.ones(len(own), np.float32)) if own else idle for own in groups[rank::world]]


def _spread(lengths: np.ndarray, count: int) -> list[list[int]]:
    """Indices of pairs in `count` groups: from the longest down, each goes to the group that has the fewest tokens."""
    groups: list[list[int]] = [[] for _ in range(count)]
    smallest = [(0, number) for number in range(count)]  # a heap
    for index in np.argsort(-lengths, kind="stable").tolist():
        tokens, number = smallest[0]
        groups[number].append(index)
        heapq.heapreplace(smallest, (tokens + int(lengths[index]), number))
    return groups


def _fits(groups: list[list[int]], lengths: np.ndarray, max_tokens: int) -> bool:
    return all(len(group) <= 1 or lengths[group].sum() <= max_tokens for group in groups)
