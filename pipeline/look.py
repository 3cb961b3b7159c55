"""What a run would say after its start, said before it: of the first rows, and of this machine."""

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.cluster.room import Node, check_fits, described, told
from pipeline.plan import State, Step
from pipeline.recipe.sections import Cluster
from stages.model_files import check_weights
from stages.sample.config import SampleConfig
from stages.sample.look import look as look_at_prompts
from stages.shard.config import ShardConfig
from stages.shard.look import Look
from stages.shard.look import look as look_at_rows
from stages.train.config import TrainConfig
from stages.train.memory.look import look as look_at_memory

_UNCOUNTED = ("/dev/kfd", "/dev/dxg", "/dev/accel0", "/dev/xpu")  # accelerators that are not counted here


def look(steps: list[Step], cluster: Cluster, nodes: Sequence[Node] | None = None) -> list[str]:
    """Lines for people, of which those that begin with "Warning: " are warnings. Nothing is read where all is made.

    `nodes`: what is looked for room on; left out, those that the cluster file describes, or this machine, where Ray is
    started here. Raises RecipeError for what would stop the run.
    """
    missing = [step for step in steps if step.state in (State.MISS, State.PARTIAL)]
    here = cluster.address is None and "RAY_ADDRESS" not in os.environ
    stages = {step.stage.name for step in missing}
    nodes = described(cluster) if nodes is None else nodes
    if here and not nodes:
        check_fits(cluster, stages, Node(machine()))
    lines = list(told(cluster, stages, nodes)) if nodes else []
    for step in missing:
        _check_models(step)
        if step.state == State.MISS and (seen := _first_rows(step)) is not None:
            lines += [seen.told, *(f"Warning: {notice}" for notice in seen.notices)]
        if step.stage.name == "train" and step.round == 1:  # others train a model of the same size
            assert isinstance(step.config, TrainConfig)
            lines += look_at_memory(step.config, cluster.train, _longest(steps), here)
    return lines


def _check_models(step: Step) -> None:
    """That their folders hold what is loaded: a hub's and an object storage's are not looked at."""
    for field in step.stage.models if step.round == 1 else ():
        named = getattr(step.config, field)
        for name in (named,) if isinstance(named, str) else named or ():
            check_weights(name, f"{step.stage.name}.{field}")


def _first_rows(step: Step) -> Look | None:
    """Of a stage that reads a source."""
    if isinstance(step.config, SampleConfig) and step.round == 1:  # in others they are the same
        return look_at_prompts(step.config)
    if isinstance(step.config, ShardConfig) and "triples" not in step.sources:
        return look_at_rows(step.config)
    return None


def _longest(steps: list[Step]) -> int:
    """Tokens of a sequence, at most."""
    return max((step.config.max_length for step in steps if isinstance(step.config, ShardConfig)), default=0)


def machine() -> dict[str, float]:
    """The most that Ray will find here; a kind that cannot be told without its driver is left out."""
    found: dict[str, float] = {"CPU": os.cpu_count() or 1}
    if not any(Path(device).exists() for device in _UNCOUNTED):
        found["GPU"] = _nvidia_gpus()
    return found


def _nvidia_gpus() -> int:
    listed = Path("/proc/driver/nvidia/gpus")
    number = len(list(listed.iterdir())) if listed.is_dir() else len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return number if visible is None else min(number, len([each for each in visible.split(",") if each.strip()]))
