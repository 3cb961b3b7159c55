"""What `plan` says of a worker's memory, and which field makes a run fit that does not."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from stages.config import Elastic
from stages.train.config import TrainConfig, TrainResources
from stages.train.memory.bill import Bill, bill
from stages.train.memory.sizes import Sizes, sizes_of

_UNTOLD = 0.05e9  # smaller parts are left out of the line
Change = tuple[str, dict[str, Any], dict[str, Any]]  # as one would --set it, in the recipe, in the cluster file


def look(config: TrainConfig, resources: TrainResources, longest: int, on_this_machine: bool) -> list[str]:
    """A line of what a worker takes; and a warning where that is more than it has, as far as this can be known.

    `longest`: tokens of a sequence, at most. Nothing is said of models whose config is not a decoder's.
    """
    sizes = sizes_of(config.policy)
    if sizes is None:
        return []
    full, has = tokens(resources, longest), memory_of(resources, on_this_machine)
    found = bill(sizes, config, resources, full)
    lines = [
        f"train takes about {_gb(found.total)} GB of each worker, of {resources.fewest_workers}, in full micro-batches "
        f"of {full:,} tokens: {parts(found)}"
    ]
    if has is not None and found.total > has:
        ways = [f"{change} ({_gb(total)} GB)" for change, total in remedies(sizes, config, resources, longest, has)]
        told = f"Any of these makes it fit: {'; '.join(ways)}" if ways else "No field alone makes it fit: add workers"
        lines.append(
            f"Warning: train takes about {_gb(found.total)} GB of each worker, and there are {_gb(has)} GB. {told}"
        )
    return lines


def tokens(resources: TrainResources, longest: int) -> int:
    """A worker's, of the largest micro-batch. A pair may be more, alone; half of its sequences is taken for prompt."""
    return max(resources.max_tokens_per_microbatch, -(-3 * longest // (2 * resources.context_parallel)))


def parts(found: Bill) -> str:
    named = {each.name: getattr(found, each.name) for each in fields(found)}
    return ", ".join(f"{name} {_gb(value)}" for name, value in named.items() if value >= _UNTOLD)


def memory_of(resources: TrainResources, on_this_machine: bool) -> float | None:
    """Bytes that a worker has: as the cluster file says, or its share of this machine; None where that is not known."""
    if resources.memory_gb is not None:
        return resources.memory_gb * 1e9
    path = Path("/proc/meminfo")
    if resources.gpus_per_worker or not on_this_machine or not path.exists():
        return None
    kilobytes = next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("MemTotal"))
    return kilobytes * 1024 / resources.fewest_workers


def remedies(
    sizes: Sizes, config: TrainConfig, resources: TrainResources, longest: int, has: float
) -> list[tuple[str, float]]:
    """Changes of one field that fit, the least one of each, with what training takes then."""
    found: dict[str, tuple[str, float]] = {}
    for change, of_recipe, of_cluster in _changes(sizes, config, resources):
        changed = resources.model_copy(update=of_cluster)
        total = bill(sizes, config.model_copy(update=of_recipe), changed, tokens(changed, longest)).total
        if total <= has:
            found.setdefault(change.partition("=")[0], (change, total))
    return list(found.values())


def _changes(sizes: Sizes, config: TrainConfig, resources: TrainResources) -> Iterator[Change]:
    def cluster(field: str, value: Any) -> Change:
        return f"cluster.train.{field}={'null' if value is None else value}", {}, {field: value}

    if resources.activation_checkpointing == "none":
        yield cluster("activation_checkpointing", "selective")
    if resources.activation_checkpointing != "layer":
        yield cluster("activation_checkpointing", "layer")
    for part in (2, 4, 8):
        yield cluster("max_tokens_per_microbatch", max(1, resources.max_tokens_per_microbatch // part))
    if resources.shard_size is not None:
        yield cluster("shard_size", None)
    if not isinstance(resources.workers, Elastic):
        for degree in (2, 4, 8):
            if degree > resources.context_parallel and resources.workers % degree == 0 and sizes.heads % degree == 0:
                yield cluster("context_parallel", degree)
    if config.optimizer == "adamw":
        yield "train.optimizer=adamw_8bit", {"optimizer": "adamw_8bit"}, {}
    if resources.gpus_per_worker and not resources.cpu_offload:
        yield cluster("cpu_offload", True)
    if not isinstance(resources.workers, Elastic) and resources.shard_size is None:
        for times in (2, 4, 8):
            yield cluster("workers", times * resources.workers)


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g}"
