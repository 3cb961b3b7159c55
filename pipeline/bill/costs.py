"""The item of each stage: amounts, operations, speed, bytes and memory put together."""

import os
from dataclasses import replace

from pipeline.bill import earlier, speed, work, written
from pipeline.bill.amounts import Amount, prompts_of
from pipeline.bill.item import Item, Reference
from pipeline.bill.left import left_of_scoring, left_of_training
from pipeline.bill.speed import Speed
from pipeline.plan import State, Step
from pipeline.recipe.sections import Cluster
from pipeline.store import Store
from stages.config import most
from stages.evaluate.config import EvaluateConfig, EvaluateResources
from stages.sample.config import SampleConfig, SampleResources
from stages.score.config import ScoreConfig, ScoreResources
from stages.train.config import TrainConfig
from stages.train.memory import look as memory
from stages.train.memory.bill import base, bill, shards, working_of_forward
from stages.train.memory.sizes import sizes_of

_WIDE = {"float32": 4, "bfloat16": 2}
_RAY = 0.25e9  # bytes that a process of Ray's holds beside one without it
_MADE = (State.HIT, State.NOT_NEEDED)


def item_of(step: Step, amount: Amount | None, cluster: Cluster, store: Store) -> Item:
    """`amount`: of the pairs that it makes or reads; None where that is not known."""
    start = Item(step.name, str(step.state))
    match step.config:
        case SampleConfig():
            return _sample(step, step.config, start, cluster, store)
        case ScoreConfig() if amount is not None:
            return _score(step, step.config, amount, _pairs(start, amount), cluster, store)
        case TrainConfig() if amount is not None:
            return _train(step, step.config, amount, start, cluster, store)
        case EvaluateConfig():
            return _evaluate(step, step.config, amount, start, cluster)
    if step.stage.name != "shard" or amount is None:
        return start
    item = _pairs(start, amount)
    if step.state in _MADE:
        return item
    cores = _cores(cluster)
    told = earlier.of_shard(store, cores)
    return replace(_timed(item, told, amount.rows, cores, "core"), bytes=written.pairs(amount, store))


def reference_of(
    step: Step, amount: Amount | None, item: Item, scoring: Item | None, cluster: Cluster
) -> Reference | None:
    """None where the loss has no reference, or the training's own work is not known."""
    config = step.config
    assert isinstance(config, TrainConfig)
    sizes = sizes_of(config.policy)
    if amount is None or sizes is None or not config.loss.reference or not item.flops:
        return None
    whole = work.trained(sizes, amount, config, cluster.train)
    share = whole.reference / (whole.flops + whole.looks)
    seconds = None if item.seconds is None else share * item.seconds
    held = base(sizes, _WIDE[config.dtype], config.quantize is not None) / shards(cluster.train)
    return Reference(share * item.flops, share, seconds, held, (scoring.flops or 0.0) if scoring else 0.0)


def _pairs(item: Item, amount: Amount) -> Item:
    return replace(
        item, rows=round(amount.pairs), unit="pairs", tokens=round(amount.tokens), exact=amount.exact, how=amount.how
    )


def _score(step: Step, config: ScoreConfig, amount: Amount, item: Item, cluster: Cluster, store: Store) -> Item:
    resources = cluster.score
    if step.state in _MADE or (sizes := sizes_of(config.model)) is None:
        return item
    flops = left_of_scoring(step, store) * work.scored(sizes, amount, config, resources)
    devices, device = _devices(resources)
    on_gpu = device == "GPU"
    item = replace(item, flops=flops, bytes=written.logprobs(amount, store))
    if not flops:  # no actor loads the model
        return _timed(item, speed.TAKEN_OVER, flops, devices, device)
    told = earlier.of_score(step, resources, store, sizes) or _by_peak("score", devices, cluster, on_gpu)
    item = _timed(item, told, flops, devices, device)
    held = None
    if config.backend == "torch":  # an engine takes the share that cluster.score.memory_fraction says
        weights = base(sizes, _WIDE[config.dtype], config.quantize is not None) / max(resources.gpus_per_actor, 1)
        held = weights + working_of_forward(sizes, _WIDE[config.dtype], resources.max_tokens_per_batch, on_gpu)
    return replace(item, memory=held)


def _train(step: Step, config: TrainConfig, amount: Amount, item: Item, cluster: Cluster, store: Store) -> Item:
    resources, sizes = cluster.train, sizes_of(config.policy)
    steps, pairs = work.steps_of(amount, config)
    tokens = pairs * amount.packed / max(amount.pairs, 1)
    item = replace(item, rows=steps, unit="steps", tokens=round(tokens), how=f"{pairs:,} pairs; {amount.how}")
    if step.state in _MADE or sizes is None:
        return item
    done = work.trained(sizes, amount, config, resources)
    gpus = resources.fewest_workers * resources.gpus_per_worker
    devices = gpus or resources.fewest_workers * resources.cpus_per_worker
    told = earlier.of_train(step, resources, store) or _by_peak("train", devices, cluster, bool(gpus))
    flops = left_of_training(step, store, steps) * (done.flops + done.looks)
    item = _timed(replace(item, flops=flops), told, flops, devices, "GPU" if gpus else "core")
    # A step of a small batch fills no micro-batch.
    of_step = config.global_batch * amount.packed / max(amount.pairs, 1) / resources.fewest_workers
    at_once = min(memory.tokens(resources, amount.longest), max(round(1.1 * of_step), 3 * amount.longest // 2))
    held = bill(sizes, config, resources, at_once).total + (0 if gpus else _RAY)
    return replace(item, memory=held, bytes=written.policy(sizes, config, resources, item.seconds))


def _sample(step: Step, config: SampleConfig, item: Item, cluster: Cluster, store: Store) -> Item:
    if (asked := prompts_of(step)) is None:
        return item
    item = replace(item, rows=asked.count, unit="prompts", tokens=round(asked.tokens), exact=asked.exact, how=asked.how)
    if step.state in _MADE or (sizes := sizes_of(config.models[0])) is None:
        return item
    draws = asked.count * config.num_samples * len(config.models)
    flops = work.drawn(sizes, asked.tokens * len(config.models), draws, config.max_tokens)
    how = f"{asked.how}; at most {draws * config.max_tokens:,} tokens are drawn"
    item = replace(_engine(item, flops, cluster, "sample"), how=how, bytes=12.0 * draws * config.max_tokens)
    if (told := earlier.of_drawn(step, store)) is None:
        return item
    rate, mean = told  # as long as answers were before
    return _timed(item, rate, draws * min(mean, config.max_tokens), item.devices, item.device)


def _evaluate(step: Step, config: EvaluateConfig, amount: Amount | None, item: Item, cluster: Cluster) -> Item:
    """Both models draw, and both read what they have drawn."""
    if step.state in _MADE or config.sampling is None or (sizes := sizes_of(config.reference)) is None:
        return item
    held_out = config.num_prompts if amount is None or config.prompts else round(amount.pairs - amount.train)
    prompts = min(config.num_prompts, held_out)
    asked = prompts * amount.prompt / max(amount.pairs, 1) if amount is not None else 0.0
    draws = 2 * prompts * config.sampling.num_samples
    flops = 3 * work.drawn(sizes, 2 * asked, draws, config.sampling.max_tokens)
    how = f"at most: {draws * config.sampling.max_tokens:,} tokens are drawn, and read by both models"
    item = replace(item, rows=prompts, unit="prompts", tokens=round(2 * asked), how=how)
    return _engine(item, flops, cluster, "evaluate")


def _engine(item: Item, flops: float, cluster: Cluster, stage: str) -> Item:
    devices, device = _devices(getattr(cluster, stage))
    told = _by_peak("sample", devices, cluster, device == "GPU")
    return _timed(replace(item, flops=flops), told, flops, devices, device)


def _devices(resources: ScoreResources | SampleResources | EvaluateResources) -> tuple[int, str]:
    """Of all actors of a pool."""
    actors = most(resources.actors)
    if resources.gpus_per_actor:
        return actors * resources.gpus_per_actor, "GPU"
    return actors * resources.cpus_per_actor, "core"


def _timed(item: Item, told: Speed | None, amount: float, devices: int, device: str) -> Item:
    item = replace(item, devices=devices, device=device)
    if told is None:
        return replace(item, basis="not known: no earlier artifact is like it. Say cluster.device_tflops")
    return replace(item, seconds=told.seconds(amount), basis=told.basis, error=told.error)


def _by_peak(stage: str, devices: int, cluster: Cluster, gpus: bool) -> Speed | None:
    if cluster.device_tflops is not None:
        stated = f"cluster.device_tflops: {cluster.device_tflops:g}"
        return speed.by_peak(stage, cluster.device_tflops * 1e12 * devices, stated)
    if gpus or cluster.address is not None:
        return None
    peak, measured = speed.cpu_peak()
    return speed.by_peak(stage, peak * min(1.0, devices / (os.cpu_count() or 1)), measured)


def _cores(cluster: Cluster) -> int:
    return (os.cpu_count() or 1) if cluster.address is None else max(1, cluster.train.fewest_workers)
