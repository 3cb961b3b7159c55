"""A run that is stopped, however often, ends as one that was not; on any number of workers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks import figures, last_step, metrics_of, train_on, weights

from stages import schema
from stages.artifacts import ReferenceLogprobs
from stages.errors import ContractError
from stages.train.config import TrainConfig, TrainResources
from stages.train.following.happened import Happened
from stages.train.job import Job
from stages.train.worker import Worker

STEPS = 10
EXACT = ("step", "batch", "loss", "grad_norm", "lr", "rewards/margins", "eval/loss")


@pytest.fixture(scope="module")
def job(inputs: tuple, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    config = TrainConfig(policy=str(tiny_model), global_batch=5, max_steps=STEPS, epochs=9, lr=1e-3, eval_steps=4)
    resources = TrainResources(checkpoint_steps=2, max_tokens_per_microbatch=200)
    return Job(config, resources, *inputs, tmp_path_factory.mktemp("undisturbed"), longest=128)


@pytest.fixture(scope="module")
def undisturbed(job: Job) -> Job:
    train_on(job, world=1)
    return job


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, STEPS - 1), min_size=1, max_size=3).map(sorted))
def test_stopped_anywhere_it_ends_the_same(
    undisturbed: Job, tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    out = tmp_path_factory.mktemp("stopped")
    for stop in stops:
        train_on(replace(undisturbed, out=out), world=1, kill_after=stop)
        assert last_step(out) < STEPS or stop == STEPS - 1
    train_on(replace(undisturbed, out=out), world=1)
    assert figures(out, EXACT) == figures(undisturbed.out, EXACT)
    expected = weights(undisturbed.out)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(out).items())


@pytest.mark.parametrize("worlds", [[2], [3], [4], [2, 1, 3]], ids=str)
def test_any_number_of_workers_draws_the_same_curve(undisturbed: Job, tmp_path: Path, worlds: list[int]) -> None:
    """One world after another, each killed when it has done its share of the steps."""
    run = replace(undisturbed, out=tmp_path)
    for number, world in enumerate(worlds, start=1):
        share = number * STEPS // len(worlds)
        train_on(run, world, kill_after=share if number < len(worlds) else None)
    assert [event["what"] for event in Happened(tmp_path).read()] == ["begun again"] * (len(worlds) - 1)
    assert figures(tmp_path, ("step", "batch")) == figures(undisturbed.out, ("step", "batch"))
    for name in ("loss", "grad_norm", "rewards/margins", "eval/loss"):
        ours, theirs = (np.array(figures(out, [name]), float) for out in (tmp_path, undisturbed.out))
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5, err_msg=name)
    expected = weights(undisturbed.out)
    for name, weight in weights(tmp_path).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0, msg=lambda text, name=name: name + text)


def test_what_is_told_to_go_saves_once_and_works_on(job: Job, tmp_path: Path, alone: None) -> None:  # noqa: ARG001
    run = replace(job, out=tmp_path, resources=TrainResources())
    Worker(run, is_preempted=lambda: last_step(tmp_path) >= 3).run()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000010"]


def test_a_step_without_a_finite_loss_is_left_out_and_named(job: Job, tmp_path: Path, alone: None) -> None:  # noqa: ARG001
    logprobs = ReferenceLogprobs(shutil.copytree(job.logprobs.folder, tmp_path / job.logprobs.folder.name))
    part = next(part for part in job.pairs.parts if job.pairs.read(part)["split"][0].as_py() == "train")
    table = logprobs.read_unchecked(part)
    sums = table["ref_chosen_logps"].to_numpy().copy()
    sums[0] = 1e300  # finite on disk, too large for float32
    planted = table.set_column(table.column_names.index("ref_chosen_logps"), "ref_chosen_logps", pa.array(sums))
    schema.write_part(planted, logprobs.folder / part)
    pair_id = table["pair_id"][0].as_py()

    Worker(replace(job, logprobs=logprobs, out=tmp_path / "out")).run()
    lines = metrics_of(tmp_path / "out")
    left_out = [line for line in lines[1:] if "loss" not in line]
    assert 1 <= len(left_out) < STEPS
    assert lines[-1]["skipped"] == len(left_out)
    named = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in named] == [line["step"] for line in left_out]
    assert all(pair_id in line["pairs"] for line in named)
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "out").values())

    strict = job.config.model_copy(update={"max_skipped_steps": 0})
    message = rf"is not finite.*max_skipped_steps is 0\. Pairs: .*{pair_id}.*Look at them, lower train\.lr"
    with pytest.raises(ContractError, match=message):
        Worker(replace(job, config=strict, logprobs=logprobs, out=tmp_path / "strict")).run()
