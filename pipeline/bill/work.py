"""Floating-point operations of a stage, from the sizes of its model and the tokens that go through it."""

import math
from dataclasses import dataclass

from pipeline.bill.amounts import Amount
from stages.score.config import ScoreConfig, ScoreResources
from stages.train.config import TrainConfig, TrainResources
from stages.train.memory.sizes import Sizes


@dataclass(frozen=True)
class Training:
    flops: float  # of the steps
    looks: float  # of the held-out pairs, over all evaluations
    reference: float  # what a reference in the trainer would compute beside them


def forward(sizes: Sizes, tokens: float, of_head: float, length: float) -> float:
    """`of_head`: tokens whose logits are wanted; `length`: of the sequences, whose attention is half a square."""
    layer = 2 * sizes.hidden * (sizes.queries + sizes.keys) + 3 * sizes.hidden * sizes.inner
    layer = min(layer, sizes.layer)  # a feed-forward without a gate is smaller; of experts a token takes a few
    return 2 * (sizes.layers * layer * tokens + sizes.head * of_head + sizes.layers * sizes.queries * tokens * length)


def scored(sizes: Sizes, amount: Amount, config: ScoreConfig, resources: ScoreResources) -> float:
    """By the torch backend a prompt is computed once a pair, and the head on completions alone."""
    if config.backend == "torch":
        return forward(sizes, amount.packed, amount.completions, _length(amount))
    picks = bool(resources.gpus_per_actor)  # else vLLM gives every position
    return forward(sizes, amount.tokens, amount.completions if picks else amount.tokens, _length(amount))


def steps_of(amount: Amount, config: TrainConfig) -> tuple[int, int]:
    """(optimizer steps, pairs that they take)."""
    steps = math.ceil(config.epochs * amount.train / config.global_batch)
    steps = steps if config.max_steps is None else min(steps, config.max_steps)
    return steps, steps * config.global_batch


def trained(sizes: Sizes, amount: Amount, config: TrainConfig, resources: TrainResources) -> Training:
    steps, pairs = steps_of(amount, config)
    each = 1 / max(amount.pairs, 1)
    once = forward(sizes, amount.packed * each, amount.completions * each, _length(amount))
    again = 1 if resources.activation_checkpointing == "layer" else 0
    backward = 1 if config.lora is not None else 2  # of frozen weights no gradient is computed
    evaluations = 2 + (steps // config.eval_steps if config.eval_steps else 0)
    looks = evaluations * (amount.pairs - amount.train) * once
    return Training(pairs * once * (1 + backward + again), looks, pairs * once + looks)


def drawn(sizes: Sizes, asked: float, draws: int, most: int) -> float:
    """Of `draws` completions that are all as long as they may be; `asked`: tokens of all prompts."""
    return forward(sizes, asked + draws * most, draws * most, most + asked / max(draws, 1))


def _length(amount: Amount) -> float:
    """Of a sequence, on average."""
    return (amount.prompt + amount.completions / 2) / max(amount.pairs, 1)
