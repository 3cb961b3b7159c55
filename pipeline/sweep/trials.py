"""Runs the trials of a sweep: what they share once, then their trainings, of which the poor ones may be stopped."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from pipeline.keeping.uses import using
from pipeline.plan import State, Step, plan, shared
from pipeline.recipe.sections import Cluster
from pipeline.runner import run
from pipeline.store import Store
from pipeline.sweep.grid import Trial
from stages.artifacts import PolicyCheckpoint
from stages.errors import ContractError, Paused, RecipeError
from stages.progress import Progress
from stages.train.best import score
from stages.train.config import TrainConfig

Draw = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Result:
    trial: Trial
    steps: list[Step]  # of its recipe
    metrics: list[dict[str, Any]]  # of all steps so far
    error: str | None = None  # why it could not go on

    @property
    def step(self) -> Step:
        """Its training."""
        return next(step for step in self.steps if step.name == self.trial.trained.name)

    @property
    def evaluated(self) -> Step | None:
        """Where its recipe asks for it."""
        return next((step for step in self.steps if step.name == "evaluate"), None)

    @property
    def finished(self) -> bool:
        return self.step.state == State.HIT

    @property
    def effect(self) -> dict[str, Any]:
        """Figures of what the policy writes, where it was evaluated."""
        step = self.evaluated
        return step.manifest.facts.get("written", {}) if step is not None and step.state == State.HIT else {}

    @property
    def done(self) -> bool:
        """All that its recipe asks for."""
        return self.finished and (self.evaluated is None or self.evaluated.state == State.HIT)

    @property
    def config(self) -> TrainConfig:
        assert isinstance(self.step.config, TrainConfig)
        return self.step.config

    @property
    def last(self) -> dict[str, Any]:
        """What the last look at held-out pairs said; nothing where none is held out."""
        return next((line for line in reversed(self.metrics) if self.config.best_metric in line), {})


def of_several_losses(results: Sequence[Result]) -> bool:
    """Whose values say nothing of each other."""
    return len({result.config.loss.name for result in results}) > 1


def look_at(trial: Trial, store: Store) -> Result:
    """How far the store is with a trial."""
    found = Result(trial, plan(trial.recipe, store), [])
    folder = found.step.folder if found.finished else store.draft("train", found.step.fingerprint)
    try:
        return replace(found, metrics=PolicyCheckpoint(folder).metrics)
    except FileNotFoundError:  # not begun
        return found


def sweep(
    trials: Sequence[Trial],
    cluster: Cluster,
    store: Store,
    connect: Callable[[], AbstractContextManager[None]],
    draw: Draw,
    notify: Callable[[str], None],
    at_once: int = 1,
    rungs: Sequence[int] = (),
) -> list[Result]:
    """Train all trials, and evaluate them where the recipe says so, `at_once` of them beside each other; those that are
    finished are not made again.

    At each step of `rungs` the worse half of those that are left is given up (successive halving; Jamieson and
    Talwalkar, 2016, 1502.07943): their checkpoints stay. Raises RecipeError where they cannot be compared there.
    """
    _check_rungs(trials, rungs)
    results = [look_at(trial, store) for trial in trials]
    if all(each.done for each in results):
        return results
    needed_by_all = {(step.stage.name, step.fingerprint[:12]) for result in results for step in result.steps}
    with using(store, needed_by_all), connect():
        for trial in trials:
            steps = plan(trial.recipe, store)
            last = [step.name for step in steps].index(trial.trained.name)
            needed = [step.name for step in steps[:last] if step.state not in (State.HIT, State.NOT_NEEDED)]
            if needed:
                list(run(steps, needed, cluster, store, nullcontext, draw, notify))
        left, errors = list(trials), dict[str, str]()
        for rung in (*rungs, None):
            errors |= _train(left, rung, cluster, store, draw, notify, at_once)
            left = [trial for trial in left if trial.label not in errors]
            if rung is not None:
                left = _better_half([look_at(trial, store) for trial in left], rung)
        _evaluate([look_at(trial, store) for trial in left], cluster, store, draw, notify, at_once)
    return [replace(look_at(trial, store), error=errors.get(trial.label)) for trial in trials]


def _train(
    trials: Sequence[Trial], until: int | None, cluster: Cluster, store: Store, draw: Draw,
    notify: Callable[[str], None], at_once: int,
) -> dict[str, str]:  # fmt: skip
    """To the end, or `until` a step. Returns why trials could not go on, by their labels: the others do."""
    train = cluster.train.model_copy(update={"pause_at": until})
    where = cluster.model_copy(update={"train": train})
    errors: dict[str, str] = {}

    def work(trial: Trial, steps: list[Step]) -> None:
        try:
            list(run(steps, [trial.trained.name], where, store, nullcontext, lambda _: draw(trial.label), notify))
        except Paused:
            pass
        except (ContractError, RecipeError) as error:
            errors[trial.label] = str(error)
            notify(f"{trial.label} could not go on: {error}")

    looked = (look_at(trial, store) for trial in trials)
    todo = [
        (result.trial, result.steps)
        for result in looked
        if not result.finished and (until is None or _at(result, until) is None)
    ]
    _side_by_side(work, todo, at_once)
    return errors


def _evaluate(
    results: Sequence[Result], cluster: Cluster, store: Store, draw: Draw, notify: Callable[[str], None], at_once: int
) -> None:
    def work(result: Result) -> None:
        name = f"evaluate {result.trial.label}"
        list(run(result.steps, ["evaluate"], cluster, store, nullcontext, lambda _: draw(name), notify))

    for some in turns([result for result in results if not result.done]):
        _side_by_side(work, [(result,) for result in some], at_once)


def turns(results: Sequence[Result]) -> tuple[list[Result], list[Result]]:
    """The first of each reference and what that is asked to write; then the others, which take over what it wrote."""
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(_asked(result), result)
    return list(first.values()), [each for each in results if each is not first[_asked(each)]]


def _asked(result: Result) -> str:
    assert result.evaluated is not None
    return repr(shared(result.evaluated.stage, result.evaluated.payload))


def _side_by_side(work: Callable[..., None], todo: Sequence[tuple[Any, ...]], at_once: int) -> None:
    """Call `work` with each arguments of `todo`; after an error those that have begun are waited for."""
    if at_once == 1:  # where an interrupt reaches it
        for each in todo:
            work(*each)
        return
    with ThreadPoolExecutor(at_once) as pool:
        working = [pool.submit(work, *each) for each in todo]
        done, left = wait(working, return_when=FIRST_EXCEPTION)
        for future in left:
            future.cancel()
        for future in done:
            future.result()


def _better_half(results: list[Result], rung: int) -> list[Trial]:
    """Rounded up, in their order; the first of those that are equal."""

    def rank(index: int) -> float:
        value = _at(results[index], rung)
        return score(value, results[index].config) if value is not None and value == value else float("inf")

    best = sorted(range(len(results)), key=rank)[: -(-len(results) // 2)]
    return [results[index].trial for index in sorted(best)]


def _at(result: Result, step: int) -> float | None:
    """The metric that is asked for at a step; at its last one of a training that stopped earlier."""
    lines = [line for line in result.metrics if line["step"] <= step and result.config.best_metric in line]
    reached = result.finished or (result.metrics and result.metrics[-1]["step"] >= step)
    return lines[-1][result.config.best_metric] if lines and reached else None


def _check_rungs(trials: Sequence[Trial], rungs: Sequence[int]) -> None:
    if list(rungs) != sorted(set(rungs)):
        raise RecipeError(f"--rungs {','.join(map(str, rungs))} are not steps in rising order")
    metrics = {trial.train.best_metric for trial in trials}
    if rungs and len(metrics) > 1:
        raise RecipeError(
            f"--rungs compares trials by train.best_metric, and theirs differ: {', '.join(sorted(metrics))}"
        )
    if rungs and metrics.pop().endswith("/loss") and len({trial.train.loss.name for trial in trials}) > 1:
        raise RecipeError(
            "--rungs compares trials by held-out loss, and losses of several kinds have other scales. Compare them by "
            "what they have in common: --set train.best_metric=eval/rewards/accuracies"
        )
    for trial in trials if rungs else ():
        every = trial.train.eval_steps
        if not every or any(rung % every for rung in rungs):
            raise RecipeError(
                f"--rungs compares trials by {trial.train.best_metric}, and {trial.label} looks at held-out "
                f"pairs every {every} steps alone (train.eval_steps). Set it to a divisor of "
                f"{', '.join(map(str, rungs))}"
            )
