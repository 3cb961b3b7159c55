"""Runs the stages of a plan whose artifacts are missing or unfinished."""

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.keeping.uses import using
from pipeline.lease import Lease
from pipeline.plan import State, Step, known, look_up
from pipeline.recipe.sections import Cluster
from pipeline.store import Store
from pipeline.view.following.meters import Metered
from stages.artifacts import MANIFEST
from stages.errors import MissingArtifact, RecipeError
from stages.progress import Progress
from stages.storage import folders


@dataclass(frozen=True)
class Done:
    """One row of the closing table."""

    step: Step
    state: Literal["done", "hit"]
    seconds: float


def run(
    steps: list[Step],
    selected: list[str],
    cluster: Cluster,
    store: Store,
    connect: Callable[[], AbstractContextManager[None]],
    progress: Callable[[str], AbstractContextManager[Progress]],
    notify: Callable[[str], None],
) -> Iterator[Done]:
    """Make what `selected` stages lack, and is needed; `connect` is entered only if there is something to make.

    An artifact that another run is making is waited for, and `notify` told of it.
    """
    check_inputs(steps, selected)
    wanted = [step for step in steps if step.name in selected and step.state != State.NOT_NEEDED]
    missing = [step for step in wanted if step.state != State.HIT]
    if not missing:
        yield from (Done(step, "hit", 0.0) for step in wanted)
        return
    with using(store, [(step.stage.name, step.fingerprint[:12]) for step in steps]), connect():
        _check_still_there(steps)
        for step in wanted:
            if step in missing:
                with store.hold(step.stage.name, step.fingerprint, notify) as lease:
                    now = look_up(step, store)  # another run may have made it since the plan
                    done = now.state == State.HIT
                    yield Done(now, "hit", 0.0) if done else _make(now, steps, cluster, store, lease, progress)
            else:
                yield Done(step, "hit", 0.0)


def check_inputs(steps: list[Step], selected: list[str]) -> None:
    """Raises MissingArtifact where a stage reads what is not made, nor selected; RecipeError where none is needed."""
    states = {step.name: step for step in steps}
    if all(states[name].state == State.NOT_NEEDED for name in selected):
        raise RecipeError("; ".join(f"{name} is not needed: {states[name].why}" for name in selected))
    for name in selected:
        for made_by in states[name].sources.values():
            if made_by not in selected and states[made_by].state != State.HIT:
                missing = states[made_by]
                raise MissingArtifact(
                    f"{name} needs {missing.stage.output.__name__} {missing.fingerprint[:12]}, which is not finished "
                    f"({missing.state}: {missing.why}). Make it first: raydpo run RECIPE --only {made_by}"
                )


def _check_still_there(steps: list[Step]) -> None:
    """From here on nobody removes them."""
    for step in steps:
        if step.state == State.HIT and not (step.folder / MANIFEST).exists():
            raise MissingArtifact(f"{step.name} {step.folder} has been removed since this run was planned. Run again")


def _make(
    step: Step,
    steps: list[Step],
    cluster: Cluster,
    store: Store,
    lease: Lease,
    progress: Callable[[str], AbstractContextManager[Progress]],
) -> Done:
    _clear_damage(step)
    draft = store.begin(step.stage.name, step.fingerprint, step.payload, step.origin)
    made = {other.name: other for other in steps}
    inputs: dict[str, Any] = {
        argument: made[name].stage.output(made[name].folder) for argument, name in step.sources.items()
    }
    config = step.config
    if trained := inputs.pop("models", None):
        policy = str(store.on_disk(trained.policy))
        several = {field: isinstance(getattr(config, field), tuple) for field in step.stage.models}
        config = config.model_copy(update={field: (policy,) if many else policy for field, many in several.items()})
    if replayed := [inputs.pop(argument) for argument in list(inputs) if argument.startswith("replayed-")]:
        inputs["replayed"] = replayed[::-1]  # the latest first
    for argument in step.stage.loads:
        if checkpoint := inputs.pop(argument, None):
            config = config.model_copy(update={argument: str(store.on_disk(checkpoint.policy))})
    if step.stage.takes_over:
        inputs["known"] = known(step, store)
    name = step.stage.name
    stage = getattr(importlib.import_module(f"stages.{name}.run"), name)
    began = time.perf_counter()
    with progress(step.name) as drawn:
        reported = Metered(drawn, step.name)
        facts = stage(config, **inputs, out=draft, resources=getattr(cluster, name), progress=reported)
    seconds = time.perf_counter() - began
    lease.check()
    took = getattr(cluster, name).model_dump(mode="json", exclude_defaults=True)
    store.commit(name, step.fingerprint, step.payload, facts, seconds, {"resources": took} | step.origin)
    return Done(step, "done", seconds)


def _clear_damage(step: Step) -> None:
    """An artifact with missing or damaged files is unfinished again; its good parts stay."""
    if not (step.folder / MANIFEST).exists():
        return
    manifest, there = step.manifest, folders.sizes(step.folder)
    (step.folder / MANIFEST).unlink()
    for record in manifest.files:
        if there.get(record.name, record.bytes) != record.bytes:
            (step.folder / record.name).unlink()
