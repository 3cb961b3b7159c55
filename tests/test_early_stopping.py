"""The policy of the best evaluation, and training that ends when there is no better one: through every stop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks import figures, last_step, metrics_of, train_on, weights

from pipeline.view.tables import key_figures
from stages.artifacts import PolicyCheckpoint
from stages.errors import ContractError
from stages.train.config import TrainConfig, TrainResources
from stages.train.job import Job
from stages.train.policy.export import export_policy
from stages.train.run import _facts
from stages.train.trainer import Trainer
from stages.train.worker import Worker

STEPS, BEST, END = 10, 2, 6  # planned; of three evaluations the first is the best, and then there were two more
EXACT = ("step", "batch", "loss", "grad_norm", "lr", "eval/loss", "eval/rewards/margins")
FIELDS: dict[str, Any] = {
    "global_batch": 5, "max_steps": STEPS, "epochs": 9, "lr": 1e-3, "eval_steps": 2, "patience": 2, "export": "best",
    "best_metric": "eval/rewards/margins", "best_is": "lowest",  # margins rise from step to step
}  # fmt: skip


@pytest.fixture(scope="module")
def job(inputs: tuple, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    config = TrainConfig(policy=str(tiny_model), **FIELDS)
    resources = TrainResources(checkpoint_steps=3, keep_checkpoints=1, max_tokens_per_microbatch=200)
    return Job(config, resources, *inputs, tmp_path_factory.mktemp("undisturbed"), longest=128)


@pytest.fixture(scope="module")
def undisturbed(job: Job) -> Job:
    train_on(job, world=1)
    return job


def kept(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*"))


def test_it_stops_after_its_patience_and_exports_the_best(undisturbed: Job, tmp_path: Path, alone: None) -> None:  # noqa: ARG001
    lines = [line for line in metrics_of(undisturbed.out)[1:] if "eval/rewards/margins" in line]
    assert [line["step"] for line in lines] == [2, 4, 6]
    margins = [line["eval/rewards/margins"] for line in lines]
    assert margins == sorted(margins)
    assert last_step(undisturbed.out) == END
    assert kept(undisturbed.out) == [BEST, END]
    trainer = Trainer(replace(undisturbed, out=tmp_path))
    for step in range(1, BEST + 1):
        trainer.step(step, STEPS)
    export_policy(tmp_path / "policy", trainer.model, undisturbed.config)
    expected = weights(tmp_path)
    for name, weight in weights(undisturbed.out).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, END - 1), min_size=1, max_size=3).map(sorted))
def test_stopped_anywhere_it_ends_the_same(
    undisturbed: Job, tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    out = tmp_path_factory.mktemp("stopped")
    for stop in stops:
        train_on(replace(undisturbed, out=out), world=1, kill_after=stop)
    train_on(replace(undisturbed, out=out), world=1)
    assert figures(out, EXACT) == figures(undisturbed.out, EXACT)
    assert kept(out) == kept(undisturbed.out)
    expected = weights(undisturbed.out)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(out).items())


def test_a_run_that_had_stopped_early_and_was_killed_before_its_export_exports(
    undisturbed: Job, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("again")
    run = replace(undisturbed, out=out)
    train_on(run, world=1)
    before = weights(out)
    (out / "policy" / "model.safetensors").unlink()
    train_on(run, world=1)
    assert last_step(out) == END
    assert all(torch.equal(weight, before[name]) for name, weight in weights(out).items())


@pytest.mark.parametrize("worlds", [[2], [3, 1, 2]], ids=str)
def test_any_number_of_workers_stops_at_the_same_step(undisturbed: Job, tmp_path: Path, worlds: list[int]) -> None:
    run = replace(undisturbed, out=tmp_path)
    for number, world in enumerate(worlds, start=1):
        share = number * END // len(worlds)
        train_on(run, world, kill_after=share if number < len(worlds) else None)
    assert figures(tmp_path, ("step", "batch")) == figures(undisturbed.out, ("step", "batch"))
    theirs, ours = (np.array(figures(out, ["eval/loss"]), float) for out in (undisturbed.out, tmp_path))
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    expected = weights(undisturbed.out)
    for name, weight in weights(tmp_path).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)


def test_a_metric_that_there_is_not_is_refused_before_the_first_step(job: Job, tmp_path: Path, alone: None) -> None:  # noqa: ARG001
    config = job.config.model_copy(update={"best_metric": "eval/other/loss"})
    message = r"train\.best_metric eval/other/loss is no held-out metric of this run: eval/rewards/chosen, .*eval/loss"
    with pytest.raises(ContractError, match=message):
        Worker(replace(job, config=config, out=tmp_path)).run()
    assert metrics_of(tmp_path) == []


def test_the_facts_are_those_of_the_policy_that_is_exported(undisturbed: Job) -> None:
    facts = _facts(PolicyCheckpoint(undisturbed.out).metrics, undisturbed.config, 10, 30)
    lines = {line["step"]: line for line in metrics_of(undisturbed.out)}
    assert facts["steps"] == END
    assert facts["best"] == {"step": BEST, "eval/rewards/margins": lines[BEST]["eval/rewards/margins"]}
    assert facts["stopped early"] == "at step 6 of 10: 2 evaluations without gain"
    assert facts["before and after"]["eval/loss"] == [lines[0]["eval/loss"], lines[BEST]["eval/loss"]]
    shown = list(key_figures(facts))
    assert any(text.startswith(f"best: step {BEST} eval/rewards/margins") for text in shown)
    assert "stopped early at step 6 of 10: 2 evaluations without gain" in shown
