"""What is a hit, what is a miss, and why."""

import math
import shutil
from pathlib import Path

import pytest
from conftest import Project

from stages.artifacts import PolicyCheckpoint, PreferencePairs, ReferenceLogprobs
from stages.errors import MissingArtifact, RecipeError


def states(project: Project, *overrides: str) -> str:
    return " ".join(f"{name}:{step.state}" for name, step in project.plan(*overrides).items())


def test_a_finished_recipe_is_all_hits_on_any_cluster(trained: Project) -> None:
    all_hits = "shard:hit score:hit train:hit"
    assert states(trained) == all_hits
    assert states(trained, "cluster.train.workers=7", "cluster.score.actors=3") == all_hits


def test_a_change_reruns_its_stage_and_those_after_it_and_is_named(trained: Project) -> None:
    plan = trained.plan("train.loss.beta=0.2")
    assert states(trained, "train.loss.beta=0.2") == "shard:hit score:hit train:miss"
    assert "train.loss.beta: 0.1 -> 0.2" in plan["train"].why
    plan = trained.plan("score.dtype=bfloat16")
    assert states(trained, "score.dtype=bfloat16") == "shard:hit score:miss train:miss"
    assert "score.dtype: float32 -> bfloat16" in plan["score"].why
    assert "input logprobs" in plan["train"].why


def test_only_the_changed_stage_runs(trained: Project) -> None:
    times = {path: path.stat().st_mtime_ns for path in trained.folder.glob("runs/s*/*/*")}
    done = trained.run("train.loss.beta=0.2", "train.max_steps=1")
    assert {name: row.state for name, row in done.items()} == {"shard": "hit", "score": "hit", "train": "done"}
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_a_missing_part_makes_a_partial_artifact_that_a_run_completes(trained: Project, tmp_path: Path) -> None:
    for made in trained.plan().values():  # and nothing that other tests have made there, whose scores would be known
        shutil.copytree(made.folder, tmp_path / "runs" / made.stage.name / made.folder.name)
    elsewhere = f"cluster.root={tmp_path / 'runs'}"
    step = trained.plan(elsewhere)["score"]
    content = (step.folder / "part-00002.parquet").read_bytes()
    (step.folder / "part-00002.parquet").unlink()
    step = trained.plan(elsewhere)["score"]
    assert (step.state, step.why) == ("partial", "part-00002.parquet is missing")
    trained.run(elsewhere, stages=["score"])
    assert (step.folder / "part-00002.parquet").read_bytes() == content
    assert trained.plan(elsewhere)["score"].state == "hit"


def test_a_stage_without_its_input_says_what_to_run(trained: Project) -> None:
    with pytest.raises(
        MissingArtifact, match=r"train needs ReferenceLogprobs \w{12}, .* raydpo run RECIPE --only score"
    ):
        trained.run("score.backend=vllm", stages=["train"])


def test_a_context_too_short_for_the_recipe_is_found_in_the_plan(trained: Project) -> None:
    with pytest.raises(RecipeError, match=r"shard\.max_length is 300, but score\.model .* takes at most 256 tokens"):
        trained.plan("shard.max_length=300")


def test_a_second_round_scores_and_trains_the_first_one_s_policy(trained: Project) -> None:
    first, planned = trained.plan(), trained.plan("rounds=2")
    assert list(planned) == ["shard", "score", "train", "score-2", "train-2"]
    assert states(trained, "rounds=2") == "shard:hit score:hit train:hit score-2:miss train-2:miss"
    assert planned["train"].fingerprint == first["train"].fingerprint
    other = trained.plan("rounds=2", "train.loss.beta=0.3")
    assert other["score-2"].fingerprint != planned["score-2"].fingerprint  # another policy to score
    with pytest.raises(MissingArtifact, match=r"score-2 needs PolicyCheckpoint .* raydpo run RECIPE --only train"):
        trained.run("rounds=2", "train.loss.beta=0.3", stages=["score-2"])

    done = trained.run("rounds=2", stages=list(planned))
    assert [row.state for row in done.values()] == ["hit", "hit", "hit", "done", "done"]
    before, step, *_ = PolicyCheckpoint(done["train-2"].step.folder).metrics
    assert step["check/ref_drift"] < 1e-4  # it starts at its new reference
    assert before["eval/loss"] == pytest.approx(math.log(2), abs=1e-5)
    scored = [ReferenceLogprobs(done[name].step.folder) for name in ("score", "score-2")]
    pairs = PreferencePairs(done["shard"].step.folder)
    one, two = (each.read(pairs.parts[0], pairs.read(pairs.parts[0]))["ref_chosen_logps"].to_numpy() for each in scored)
    assert abs(one - two).max() > 0.1
    assert states(trained, "rounds=2") == "shard:hit score:hit train:hit score-2:hit train-2:hit"
