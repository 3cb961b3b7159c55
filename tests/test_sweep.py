"""Sweeps: what a grid makes, and that its trials are the runs that each would be by itself."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Project, make_project
from rich.console import Console

from pipeline.identity import Digests
from pipeline.recipe.sections import Cluster
from pipeline.store import Store
from pipeline.sweep.grid import Trial, trials
from pipeline.sweep.trials import Result, look_at, sweep, turns
from pipeline.view.sweep import draw, plain, print_results
from stages.artifacts import PolicyCheckpoint, PreferencePairs, ReferenceLogprobs
from stages.errors import RecipeError
from stages.progress import Silent
from stages.train.config import TrainResources
from stages.train.job import Job
from stages.train.worker import Worker


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("sweep"), tiny_model)
    recipe = yaml.safe_load(project.recipe.read_text())
    recipe["train"] |= {"max_steps": 4, "eval_steps": 2}
    project.recipe.write_text(yaml.safe_dump(recipe))
    return project


def grid(project: Project, *words: str, set_: tuple[str, ...] = ()) -> tuple[list[Trial], Cluster]:
    return trials(project.recipe, project.cluster, set_, words, Digests(None))


def test_every_combination_is_a_trial(project: Project) -> None:
    found, _ = grid(project, "train.loss.beta=0.05, 0.1,3e-1", "train.loss=dpo,ipo", set_=("train.lr=1e-4",))
    assert [trial.label for trial in found] == [
        f"train.loss.beta={beta} train.loss={loss}" for beta in ("0.05", "0.1", "3e-1") for loss in ("dpo", "ipo")
    ]
    assert [trial.recipe.train.loss.beta for trial in found] == [0.05, 0.05, 0.1, 0.1, 0.3, 0.3]
    assert len({trial.trained.fingerprint for trial in found}) == 6
    assert {trial.recipe.train.lr for trial in found} == {1e-4}
    sections, _ = grid(project, "train.loss={name: dpo, beta: 0.2},{name: ipo}")
    assert sections[0].recipe.train.loss.beta == 0.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train.loss.beta",), "is not key=value,value"),
        (("train.loss.beta=",), "a value is missing"),
        (("train.loss.beta=0.1,,0.2",), "is not YAML|a value is missing"),
        (("train.loss.beta=[0.1",), "is not YAML"),
        (("train.loss.beta=0.1", "train.loss.beta=0.2"), r"names train\.loss\.beta twice.*=A,B"),
        (("train.loss.beta=0.1,0.10",), "two trials of the grid train the same policy.*Leave one out"),
        (("cluster.train.workers=1,2",), "changes no result"),
        (("train.loss.betas=0.1",), r"train\.loss\.betas: no such key"),
        (("train.lr=fast",), r"train\.lr"),
    ],
)
def test_a_grid_that_is_none_is_refused(words: tuple[str, ...], message: str, project: Project) -> None:
    with pytest.raises(RecipeError, match=re.compile(message, re.DOTALL)):
        grid(project, *words)


def swept(found: list[Trial], where: Cluster, draw: Any, rungs: tuple[int, ...] = ()) -> list[Result]:
    store = Store.open(where.root, where.work)
    return sweep(found, where, store, nullcontext, draw, print, rungs=rungs)


class Killed(BaseException):
    """What ends a process."""


@contextmanager
def killed_in_the_second(name: str) -> Iterator[Silent]:
    if name == "train.lr=1e-9":
        raise Killed
    yield Silent()


@pytest.mark.usefixtures("ray_cluster", "alone")
def test_trials_are_the_runs_they_would_be(project: Project, tmp_path: Path) -> None:
    """Killed before the second trial; run again, which gives up that trial at step 2; and again, which finishes it. It
    is compared with a training that knows of no sweep."""
    found, where = grid(project, "train.lr=3e-3,1e-9")
    with pytest.raises(Killed):
        swept(found, where, killed_in_the_second)
    drawn: list[str] = []

    @contextmanager
    def noted(name: str) -> Iterator[Silent]:
        drawn.append(name)
        yield Silent()

    stopped = swept(found, where, noted, rungs=(2,))
    assert [result.finished for result in stopped] == [True, False]
    assert stopped[1].metrics[-1]["step"] == 2
    assert drawn == ["train.lr=1e-9"]  # neither the pairs, nor their scores, nor the finished trial again
    assert plain(swept(found, where, noted, rungs=(2,))) == plain(stopped)
    results = swept(found, where, noted)
    assert all(result.finished for result in results)
    steps = project.plan("train.lr=1e-9")
    assert results[1].step.fingerprint == steps["train"].fingerprint
    inputs = PreferencePairs(steps["shard"].folder), ReferenceLogprobs(steps["score"].folder)
    config: Any = steps["train"].config
    Worker(Job(config, TrainResources(), *inputs, tmp_path, 128)).run()
    for ours, theirs in zip(results[1].metrics, PolicyCheckpoint(tmp_path).metrics, strict=True):
        for name in ("loss", "batch", "grad_norm", "eval/loss"):
            assert ours.get(name) == theirs.get(name), name
    shown = Console(record=True, width=120, file=StringIO())
    print_results(results, shown, as_json=False)
    told = shown.export_text()
    assert told.index("3e-3") < told.index("1e-9")  # the better one first
    assert "accuracy" in told
    draw(results, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"sweep-light.png", "sweep-dark.png"}
    json.dumps(plain(results))


@pytest.mark.usefixtures("ray_cluster", "alone")
def test_trials_beside_each_other_have_evaluations_of_their_own(project: Project) -> None:
    found, where = grid(project, "train.lr=3e-3,1e-9", set_=("evaluate.sampling=null",))
    store = Store.open(where.root, where.work)
    for result in sweep(found, where, store, nullcontext, lambda _: nullcontext(Silent()), print, at_once=2):
        assert result.evaluated is not None
        assert result.done
        held_out = result.evaluated.manifest.facts["held out"]["eval"]
        assert held_out["loss"]["value"] == pytest.approx(result.last["eval/loss"], rel=1e-4)


def test_who_has_the_reference_write_is_evaluated_before_who_takes_that_over(project: Project) -> None:
    """Trials of two sweeps, that draw with seeds of their own; one of the second asks for shorter texts."""
    found = [
        trial
        for set_ in (("evaluate.sampling.seed=0",), ("evaluate.sampling.seed=1",))
        for trial in grid(project, "train.lr=1e-3,2e-3", set_=set_)[0]
    ]
    found += grid(project, "train.lr=1e-3", set_=("evaluate.sampling={seed: 1, max_tokens: 8}",))[0]
    store = Store.open(str(project.folder / "runs"), "")
    looked = [look_at(trial, store) for trial in found]
    first, others = turns(looked)
    assert [looked.index(each) for each in first] == [0, 2, 4]
    assert [looked.index(each) for each in others] == [1, 3]


def test_rungs_need_a_look_at_held_out_pairs(project: Project) -> None:
    found, where = grid(project, "train.lr=1e-3,2e-3")
    with pytest.raises(RecipeError, match=r"every 2 steps alone.*Set it to a divisor of 3"):
        swept(found, where, lambda _: nullcontext(Silent()), rungs=(3,))
    mixed, _ = grid(project, "train.loss=dpo,ipo")
    with pytest.raises(RecipeError, match=r"other scales.*best_metric=eval/rewards/accuracies"):
        swept(mixed, where, lambda _: nullcontext(Silent()), rungs=(2,))
    with pytest.raises(RecipeError, match="rising order"):
        swept(found, where, lambda _: nullcontext(Silent()), rungs=(4, 2))
