"""Prompts become completions, these triples, and those pairs: once, and whatever kills it on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, Project, actors_of

from pipeline.runner import Done
from stages.artifacts import PreferencePairs
from stages.errors import ContractError, RecipeError
from stages.sample.asked import told_of_sample
from stages.sample.config import SampleConfig
from stages.sample.prompts import write_prompts
from stages.samples import Completions, Triples

MESSAGES = [{"role": "user", "content": "How was the weather?"}]
STAGES = ("sample", "judge", "shard")
JUDGE = """
import os
import time
from lexicon import LIKED

HOLD = os.path.join(os.path.dirname(__file__), "..", "..", ".hold")  # in the folder of the artifact
calls = 0

def score(prompt, completion):
    global calls
    calls += 1
    while calls > 30 and os.path.exists(HOLD):
        time.sleep(0.01)
    assert prompt[-1]["role"] == "user"
    return sum(completion.count(each) for each in LIKED) - 0.01 * len(completion)
"""


def ask(folder: Path, number: int) -> None:
    asked = [{"prompt": f"How was the day, number {i}?"} for i in range(number)]
    asked += [{"messages": [{"role": "user", "content": "Say so."}, {"role": "assistant", "content": "So."}]}]
    asked += [asked[0], {"question": "?", "prompt": ""}]  # a duplicate, and an empty one
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, ray_cluster: str) -> Project:  # noqa: ARG001
    """A project of two on-policy rounds whose first three stages have run."""
    folder = tmp_path_factory.mktemp("sampled")
    ask(folder, 22)
    (folder / "judge.py").write_text(JUDGE)
    (folder / "lexicon.py").write_text("LIKED = 'aeiou'\n")
    recipe = {
        "model": str(tiny_model),
        "sample": {
            "source": str(folder / "prompts.jsonl"), "num_samples": 3, "max_tokens": 12, "dtype": "float32",
            "num_parts": 3, "max_prompt_length": 100,
        },
        "judge": {"name": "function", "function": "judge:score"},
        "shard": {"max_length": 128, "num_parts": 2, "eval_fraction": 0.2},
        "score": {"backend": "torch", "dtype": "float32", "accept": {"calibration_pairs": 0}},
        "train": {"global_batch": 4, "lr": 1e-3, "max_steps": 2},
        "rounds": {"count": 2, "sample": True, "replay": 1},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "cluster.yaml").write_text(yaml.safe_dump({"root": str(folder / "runs")}))
    project = Project(folder)
    project.run(stages=STAGES)
    return project


def completions(folder: Path) -> list[dict[str, Any]]:
    parts = [pq.read_table(path).to_pylist() for path in sorted(folder.glob("part-*.parquet"))]
    return sorted((row for part in parts for row in part), key=lambda row: (row["prompt_id"], row["sample"]))


def test_every_prompt_has_its_samples(sampled: Project) -> None:
    step = sampled.plan()["sample"]
    facts, rows = step.manifest.facts, completions(step.folder)
    assert (facts["prompts"], facts["completions"], facts["taken_over"]) == (23, 69, 0)
    assert facts["dropped"] == {"duplicate": 1, "empty": 1}
    assert [row["sample"] for row in rows] == [0, 1, 2] * 23
    assert all(len(row["ids"]) == len(row["token_logps"]) for row in rows)
    assert {row["reason"] for row in pq.read_table(step.folder / "rejects.parquet").to_pylist()} == {
        "duplicate",
        "empty",
    }
    assert facts["tokens"] == sum(len(row["ids"]) for row in rows)


def test_the_judge_s_best_is_chosen_and_shard_reads_it(sampled: Project, tmp_path: Path) -> None:
    steps = sampled.plan()
    facts = steps["judge"].manifest.facts
    assert (facts["prompts"], facts["questions"], facts["asked"], facts["faults"]) == (
        23,
        facts["asked"],
        facts["questions"],
        {},
    )
    space: dict[str, Any] = {"__file__": str(tmp_path / "a" / "b" / "judge.py")}
    (tmp_path / "lexicon.py").write_text("")
    exec(JUDGE.replace("from lexicon import LIKED", "LIKED = 'aeiou'"), space)
    texts: dict[str, list[str]] = {}
    for row in completions(steps["sample"].folder):
        texts.setdefault(row["prompt_id"], []).append(row["text"])
    triples = [row for path in steps["judge"].folder.glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    assert len(triples) + sum(facts["dropped"].values()) == 23
    for row in triples:
        asked = json.loads(row["prompt"])
        scores = {text: space["score"](asked, text) for text in texts[row["prompt_id"]] if text.strip()}
        sides = [json.loads(row[side])[0]["content"] for side in ("chosen", "rejected")]
        assert [scores[side] for side in sides] == [max(scores.values()), min(scores.values())]
        assert row["margin"] == pytest.approx(max(scores.values()) - min(scores.values()))
    # What was cut has no end token.
    ends = {(row["prompt_id"], row["text"]): row["finish"] for row in reversed(completions(steps["sample"].folder))}
    for row in triples:
        said = [ends[row["prompt_id"], json.loads(row[side])[0]["content"]] for side in ("chosen", "rejected")]
        assert [row["chosen_finish"], row["rejected_finish"]] == said
    finishes = [row[f"{side}_finish"] for row in triples for side in ("chosen", "rejected")]
    assert 0 < finishes.count("length") < len(finishes)
    # The prompt's tokens are those that were sampled from.
    asked_ids = {tuple(row["prompt_ids"]) for row in completions(steps["sample"].folder)}
    pairs = list(PreferencePairs(steps["shard"].folder).rows())
    assert len(pairs) == len(triples) - steps["shard"].manifest.facts["dropped"].get("equal", 0)
    assert {tuple(pair["prompt_ids"]) for pair in pairs} <= asked_ids
    assert all(pair["margin"] > 0 and pair["source"].startswith("judged/") for pair in pairs)
    found = [pair[f"{side}_ids"][-1] == 1 for pair in pairs for side in ("chosen", "rejected")]
    assert found.count(False) == steps["shard"].manifest.facts["unended_completions"]
    assert abs(found.count(False) - finishes.count("length")) <= 2 * (len(triples) - len(pairs))


GROWN = ("sample.num_parts=5", "cluster.sample.max_num_seqs=2")


@pytest.fixture(scope="module")
def grown(sampled: Project) -> dict[str, Done]:
    """Six prompts more, in other parts, by an engine of other batches."""
    ask(sampled.folder, 28)
    try:
        return sampled.run(*GROWN, stages=STAGES[:2])
    finally:
        ask(sampled.folder, 22)


def test_new_prompts_cost_what_they_add(sampled: Project, grown: dict[str, Done]) -> None:
    facts = grown["sample"].step.manifest.facts
    assert (facts["asked"], facts["taken_over"], facts["prompts"]) == (6, 23, 29)
    judged = grown["judge"].step.manifest.facts
    assert judged["asked"] + judged["taken_over"] == judged["questions"]
    assert 0 < judged["asked"] <= 18
    found = {(row["prompt_id"], row["sample"]): row for row in completions(grown["sample"].step.folder)}
    for row in completions(sampled.plan()["sample"].folder):
        assert found[row["prompt_id"], row["sample"]] | {"source_row": row["source_row"]} == row


def test_neither_batches_nor_kills_change_anything(
    sampled: Project, grown: dict[str, Done], tmp_path: Path, ray_cluster: str
) -> None:
    """All is drawn anew, by itself. SIGKILL of the actor that samples, and of the driver while it judges."""
    project = Project(tmp_path)
    for name in ("judge.py", "lexicon.py"):
        shutil.copy(sampled.folder / name, tmp_path)
    ask(tmp_path, 28)
    recipe = yaml.safe_load(sampled.recipe.read_text())
    recipe["sample"] |= {"source": str(tmp_path / "prompts.jsonl"), "num_parts": 5}
    project.recipe.write_text(yaml.safe_dump(recipe))
    cluster = {"root": str(tmp_path / "runs"), "address": ray_cluster, "sample": {"max_num_seqs": 3}}
    project.cluster.write_text(yaml.safe_dump(cluster))
    sample, judge = (project.plan()[name].folder for name in STAGES[:2])
    judge.mkdir(parents=True)
    (judge / ".hold").touch()
    said = tmp_path / "said.txt"

    def start() -> subprocess.Popen:
        command = [sys.executable, "-m", "pipeline", "run", str(project.recipe), "--cluster", str(project.cluster)]
        command += ["--until", "judge"]
        with said.open("w") as file:
            return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)

    def wait_until(true: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 120
        while not (found := true()):
            assert driver.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.01)
        return found

    def answered() -> int:
        return sum(path.read_text().count("\n") for path in judge.glob(".answers/*.jsonl"))

    driver = start()
    (sampler,) = wait_until(lambda: actors_of(ray_cluster, "PartSampler"))
    wait_until(lambda: list(sample.glob("part-*")))
    os.kill(sampler, signal.SIGSTOP)
    assert len(list(sample.glob("part-*"))) < 5
    os.kill(sampler, signal.SIGKILL)
    wait_until(lambda: answered() == 30)
    driver.kill()
    driver.wait()
    while actors_of(ray_cluster, "PartJudge"):
        time.sleep(0.1)
    kept = {path: path.stat().st_mtime_ns for folder in (sample, judge) for path in folder.glob("part-*")}
    (judge / ".hold").unlink()
    assert [project.plan()[name].state for name in STAGES] == ["hit", "partial", "miss"]
    driver = start()
    assert driver.wait(timeout=120) == 0, said.read_text()

    assert len(kept) > 5
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for name in STAGES[:2]:
        step, folder = project.plan()[name], grown[name].step.folder
        assert folder.name == step.folder.name
        files = [path.name for path in folder.glob("*.parquet")]
        assert all(pq.read_table(step.folder / file).equals(pq.read_table(folder / file)) for file in files)
        facts = step.manifest.facts
        assert facts["asked"] == facts["prompts" if name == "sample" else "questions"]


def test_rounds_draw_from_the_policy_and_replay(sampled: Project) -> None:
    """Which artifacts a second round is made of, and what a change of the judge touches."""
    steps = sampled.plan()
    names = ["sample", "judge", "shard", "score", "train"]
    assert list(steps) == [*names, *(f"{name}-2" for name in names)]
    assert steps["sample-2"].sources == {"models": "train"}
    assert steps["shard-2"].sources == {"triples": "judge-2", "replayed-1": "judge"}
    assert steps["train-2"].sources == {"pairs": "shard-2", "logprobs": "score-2", "models": "train"}
    assert all(steps[name].state == "hit" for name in STAGES)
    try:
        (sampled.folder / "lexicon.py").write_text("LIKED = 'xyz'\n")
        other = sampled.plan()
        judged = sampled.run(stages=STAGES[:2])
    finally:
        (sampled.folder / "lexicon.py").write_text("LIKED = 'aeiou'\n")
    assert [name for name in names if other[name].fingerprint == steps[name].fingerprint] == ["sample"]
    assert other["judge"].why.startswith("judge.function:")
    assert [judged[name].state for name in STAGES[:2]] == ["hit", "done"]
    assert judged["judge"].step.manifest.facts["asked"] == judged["judge"].step.manifest.facts["questions"] > 0
    plain = sampled.plan("rounds=2")
    assert list(plain)[5:] == ["score-2", "train-2"]
    assert plain["shard"].fingerprint == steps["shard"].fingerprint


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sample.max_prompt_length=5"], r"25 of 25 rows.*make no prompt.*24 too_long.*sample.max_prompt_length is 5"),
        (["sample.max_tokens=250"], "takes at most 256 tokens"),
        (["judge.function=os:system"], r"no os\.py in .*the folder of the recipe"),
        (["judge.function=judge:grade"], r"judge.py has no function grade; it has score"),
        (
            ["judge.name=delta", "judge.function=null"],
            r"judge\.function: no such key; known: name; function is a key of others",
        ),
        (["judge=null", "shard.source=null"], r"shard: there is no source\. Give source, sources or first_of"),
        (["shard.source=prompts.jsonl"], "Leave out shard.source, or judge"),
        (["sample.temperature=0"], "draws the same completion 3 times"),
    ],
)
def test_what_cannot_be_is_said(sampled: Project, overrides: list[str], said: str) -> None:
    with pytest.raises((RecipeError, ContractError), match=f"(?s){said}"):
        sampled.run(*overrides, f"cluster.root={sampled.folder / 'refused'}", stages=STAGES[:2])


def test_prompts_are_read_of_all_that_shard_reads(tiny_model: Path, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "One?"}]
    rows: list[dict[str, Any]] = [
        {"prompt": "One?"},
        {"prompt": said, "chosen": "a", "rejected": "b"},
        {"chosen": "\n\nHuman: One?\n\nAssistant: a", "rejected": "\n\nHuman: One?\n\nAssistant: b"},
        {"conversations": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "So."}]},
        {"prompt": "Two?", "tools": [{"name": "a"}]},
        {"text": "nothing"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for text, reasons in (("chat", {"duplicate": 3, "malformed": 1, "unsupported": 1}), ("plain", None)):
        config = SampleConfig(
            source=str(tmp_path / "rows.jsonl"), tokenizer=str(tiny_model), models=(str(tiny_model),), text=text
        )
        facts = write_prompts(config, tmp_path / text)
        (part,) = (tmp_path / text).glob("part-*.parquet")
        found = [json.loads(row["prompt"]) for row in pq.read_table(part).to_pylist()]
        if reasons is not None:
            assert found == [said]
            assert facts["dropped"] == reasons
        else:
            assert "One?" in found
            assert said in found


def test_what_is_said_of_shard_s_fields_is_said_of_sample_s() -> None:
    said = r"^sample\.source /shard\.jsonl: see sample\.columns and shard\.shape$"
    with pytest.raises(RecipeError, match=said), told_of_sample():
        raise RecipeError("shard.source /shard.jsonl: see shard.columns and shard.shape")


def test_handles_are_of_what_was_written(sampled: Project) -> None:
    steps = sampled.plan()
    made = Completions(steps["sample"].folder)
    assert sum(len(made.of_all_models(number)) for number in range(3)) == 69
    assert Triples(steps["judge"].folder).graded
