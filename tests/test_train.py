"""Training on the tiny model: what it computes, what it writes, what it refuses."""

import dataclasses
import gzip
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Project
from ranks import figures, train_on
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages import schema
from stages.artifacts import PolicyCheckpoint, PreferencePairs, ReferenceLogprobs
from stages.errors import ContractError
from stages.logps.reading.loading import load
from stages.score.config import ScoreConfig, ScoreResources
from stages.score.torch_scorer import TorchScorer
from stages.train.config import TrainConfig, TrainResources
from stages.train.job import Job
from stages.train.objective.losses import losses_of
from stages.train.objective.named.paired import Sigmoid
from stages.train.objective.step_loss import logps_of
from stages.train.pairs.batch import Batch
from stages.train.pairs.order import Order
from stages.train.pairs.pair_set import PairSet
from stages.train.run import train
from stages.train.trainer import Trainer
from stages.train.worker import Worker

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(trained: Project) -> PolicyCheckpoint:
    return PolicyCheckpoint(trained.plan()["train"].folder)


def test_training_starts_at_log_2_and_learns(policy: PolicyCheckpoint) -> None:
    before, first, *_, last = policy.metrics
    assert before["step"] == 0
    assert [line["step"] for line in policy.metrics[1:]] == [1, 2, 3, 4, 5, 6]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert before["eval/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["check/ref_drift"] < 1e-4
    assert last["loss"] < 0.9 * first["loss"]
    assert last["eval/rewards/margins"] > before["eval/rewards/margins"] + 0.01


def test_some_steps_leave_a_trace_of_each_rank(
    trained: Project, policy: PolicyCheckpoint, inputs: tuple, tmp_path: Path
) -> None:
    """Of 6 steps the first two are not looked at, and 3 are; what is trained is the same."""
    config = trained.plan()["train"].config
    job = Job(config, TrainResources(profile_steps=3), *inputs, tmp_path / "out", 128)
    train_on(job, world=2)
    for rank in range(2):
        with gzip.open(job.out / "profile" / f"rank-{rank}.json.gz") as file:
            named = [event.get("name", "") for event in json.load(file)["traceEvents"]]
        assert sum(name.startswith("ProfilerStep#") for name in named) == 3
        assert "Optimizer.step#AdamW.step" in named
    assert [line["loss"] for line in policy.metrics[1:]] == pytest.approx(
        [loss for (loss,) in figures(job.out, ("loss",))[1:]], abs=1e-5
    )


def test_cached_equals_live(inputs: tuple, policy: PolicyCheckpoint, tiny_model: Path) -> None:
    """The loss from the log-probs on disk is the loss with the reference model at hand."""
    pairs = PairSet(*inputs, "train")
    model, reference = (load(str(folder), "float32", 128) for folder in (policy.policy, tiny_model))
    batch = Batch.of(pairs.read(np.arange(len(pairs))), model, CPU)
    with torch.no_grad():
        seen, ref_logps = logps_of(batch, model(batch.layout)), batch.layout.sums(reference(batch.layout))
        cached = losses_of(seen, Sigmoid(), {})
        live = losses_of(seen._replace(ref_chosen=ref_logps[0], ref_rejected=ref_logps[1]), Sigmoid(), {})
    torch.testing.assert_close(cached, live, atol=1e-5, rtol=0)
    assert (cached - math.log(2)).abs().max() > 1e-3  # the policy has moved: the case is not the trivial one


@pytest.mark.usefixtures("alone")
def test_one_step_is_what_torch_alone_computes(inputs: tuple, tiny_model: Path, tmp_path: Path) -> None:
    """Loss, gradient and update of one step, written out with one model, one optimizer, and no FSDP."""
    loss = Sigmoid(beta=0.3)
    config = TrainConfig(policy=str(tiny_model), global_batch=5, max_steps=1, lr=1e-3, warmup_fraction=0, loss=loss)
    Worker(Job(config, TrainResources(), *inputs, tmp_path, 128)).run()
    pairs, model = PairSet(*inputs, "train"), load(str(tiny_model), "float32", 128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    batch = Batch.of(pairs.read(Order(pairs.counts, 0, 5, 1000).batch_at(1)), model, CPU)
    losses_of(logps_of(batch, model(batch.layout)), loss, {}).mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert PolicyCheckpoint(tmp_path).metrics[1]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32).state_dict()
    for name, weight in model.causal_lm.state_dict().items():
        torch.testing.assert_close(exported[name], weight, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("alone")
def test_a_step_is_told_by_source(inputs: tuple, tiny_model: Path, tmp_path: Path) -> None:
    """The pairs from two sources: their means, weighted by their number, are that of the step."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for part in inputs[0].parts:
        table = inputs[0].read(part)
        sources = pa.array(["st"[row % 2] for row in table["source_row"].to_pylist()])
        schema.write_part(table.set_column(table.column_names.index("source"), "source", sources), folder / part)
    facts = {"report": {"sources": {source: {"pairs": 9, "train": 9} for source in "st"}}}
    dataclasses.replace(inputs[0].manifest, facts=facts).write(folder)
    config = TrainConfig(policy=str(tiny_model), global_batch=7, max_steps=1, loss=Sigmoid(beta=0.3))
    trainer = Trainer(Job(config, TrainResources(), PreferencePairs(folder), inputs[1], tmp_path, 128))
    found = trainer.step(1, 2)
    sources = trainer.pairs.sources(trainer.order.batch_at(1)).tolist()
    assert set(sources) == {"s", "t"}
    for name in ("loss", "logps/chosen", "rewards/accuracies"):
        mean = sum(found[f"train/{source}/{name}"] * sources.count(source) for source in "st") / len(sources)
        assert mean == pytest.approx(found[name], rel=1e-9), name


def test_workers_change_nothing(inputs: tuple, policy: PolicyCheckpoint, trained: Project, tmp_path: Path) -> None:
    """Two workers, another micro-batch, and a batch of 5 that two ranks cannot share evenly: the same weights."""
    config, resources = trained.plan()["train"].config, TrainResources(max_tokens_per_microbatch=100)
    train_on(Job(config, resources, *inputs, tmp_path, 128), world=2)
    two = PolicyCheckpoint(tmp_path)
    for one_worker, two_workers in zip(policy.metrics, two.metrics, strict=True):
        for name in ("loss", "grad_norm", "eval/loss", "rewards/margins", "eval/rewards/margins"):
            assert two_workers.get(name, 0) == pytest.approx(one_worker.get(name, 0), abs=2e-5, rel=1e-4), name
    before = load_file(Path(config.policy) / "model.safetensors")
    weights = [load_file(each.policy / "model.safetensors") for each in (policy, two)]
    for name, weight in weights[0].items():
        moved = (weight - before[name]).abs().max()
        assert moved > 1e-4, f"{name} was not trained"
        torch.testing.assert_close(weight, weights[1][name], atol=1e-5, rtol=0)


def test_the_export_is_the_checkpoint_and_loads_in_transformers(policy: PolicyCheckpoint, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(policy.policy)
    assert (
        AutoTokenizer.from_pretrained(policy.policy).chat_template
        == AutoTokenizer.from_pretrained(tiny_model).chat_template
    )
    state = {"model": {f"causal_lm.{name}": torch.empty_like(w) for name, w in model.state_dict().items()}}
    dcp.load(state, checkpoint_id=policy.folder / "checkpoints" / "step-00000006")
    for name, weight in model.state_dict().items():
        assert torch.equal(state["model"][f"causal_lm.{name}"], weight), name


@pytest.mark.usefixtures("alone")
def test_a_policy_that_is_not_the_reference_is_refused(inputs: tuple, tiny_model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    config = TrainConfig(policy=str(other), global_batch=5, max_steps=2)
    message = (
        r"differ from the cached reference's: the root mean square of the differences of \d+ tokens is .* more "
        r"than train\.ref_tolerance 0\.005.*largest .*: pair \w{32}, \w+ token \d+"
    )
    with pytest.raises(ContractError, match=message):  # tests/test_train_run.py: how it reaches the driver
        Trainer(Job(config, TrainResources(), *inputs, tmp_path / "out", 128)).step(1, 2)
    allowed = config.model_copy(update={"starts_at_reference": False})
    first = Trainer(Job(allowed, TrainResources(), *inputs, tmp_path / "out", 128)).step(1, 2)
    assert first["check/ref_drift"] > 0.01


@pytest.mark.usefixtures("alone")
def test_a_reference_in_bfloat16_is_refused_in_float32_and_starts_at_log_2_in_bfloat16(
    inputs: tuple, tiny_model: Path, tmp_path: Path
) -> None:
    pairs, reference = inputs[0], ScoreConfig(model=str(tiny_model), backend="torch", dtype="bfloat16")
    scorer = TorchScorer(reference, ScoreResources(), 128)
    for part in pairs.parts:
        rows = pairs.read(part)
        schema.write_part(schema.logprobs_table(rows, scorer.token_logps(rows)), tmp_path / part)
    config, scored = TrainConfig(policy=str(tiny_model), global_batch=5, max_steps=1), ReferenceLogprobs(tmp_path)
    message = (
        r"differ from the cached reference's: the root mean square .* is 0\.\d+ nats.*another dtype in score than in"
    )
    with pytest.raises(ContractError, match=message):
        Trainer(Job(config, TrainResources(), pairs, scored, tmp_path, 128)).step(1, 1)
    alike = config.model_copy(update={"dtype": "bfloat16"})
    first = Trainer(Job(alike, TrainResources(), pairs, scored, tmp_path, 128)).step(1, 1)
    assert first["loss"] == pytest.approx(math.log(2), abs=0.005)


@pytest.mark.usefixtures("alone")
def test_a_damaged_part_is_named(inputs: tuple, trained: Project, tmp_path: Path) -> None:
    logprobs = ReferenceLogprobs(shutil.copytree(inputs[1].folder, tmp_path / inputs[1].folder.name))
    part = logprobs.folder / inputs[0].parts[2]
    part.write_bytes(part.read_bytes()[:-7])
    config = trained.plan()["train"].config
    with pytest.raises(ContractError, match=rf"{part} cannot be read .* make it again: raydpo run RECIPE --only score"):
        Worker(Job(config, TrainResources(), inputs[0], logprobs, tmp_path, 128)).run()


def test_logprobs_of_other_pairs_are_refused(trained: Project, inputs: tuple, tmp_path: Path) -> None:
    other = trained.run("shard.limit=20", stages=["shard", "score"])
    logprobs = ReferenceLogprobs(other["score"].step.folder)
    pairs_of = other["shard"].step.folder.name
    message = f"was scored from PreferencePairs {pairs_of}, but train was given {inputs[0].folder.name}. Score these"
    with pytest.raises(ContractError, match=message):
        train(
            trained.plan()["train"].config, pairs=inputs[0], logprobs=logprobs, out=tmp_path, resources=TrainResources()
        )
    # The same, where only the rows give it away.
    part = inputs[0].parts[0]
    with pytest.raises(
        ContractError, match=r"holds log-probs of other pairs: \d+ rows for \d+ pairs, and from row \d+"
    ):
        logprobs.read(part, inputs[0].read(part))


@pytest.mark.usefixtures("alone")
def test_bfloat16_compute_and_export_keep_float32_weights(inputs: tuple, trained: Project, tmp_path: Path) -> None:
    exact = trained.plan()["train"].config
    config = exact.model_copy(update={"dtype": "bfloat16", "export_dtype": "bfloat16", "max_steps": 2})
    Worker(Job(config, TrainResources(), *inputs, tmp_path, 128)).run()
    first = PolicyCheckpoint(tmp_path).metrics[1]
    assert 1e-4 < first["check/ref_drift"] < 1.0  # bfloat16 really computed
    assert first["loss"] == pytest.approx(math.log(2), abs=0.05)
    exported = load_file(tmp_path / "policy" / "model.safetensors")
    assert {weight.dtype for weight in exported.values()} == {torch.bfloat16}
    state = {"model": {f"causal_lm.{name}": torch.empty_like(w, dtype=torch.float32) for name, w in exported.items()}}
    dcp.load(state, checkpoint_id=tmp_path / "checkpoints" / "step-00000002")
    for name, weight in exported.items():
        assert torch.equal(state["model"][f"causal_lm.{name}"].bfloat16(), weight), name
