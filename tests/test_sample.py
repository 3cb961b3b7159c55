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
from conftest import ROOT, Project
from ray.util.state import list_actors

from stages.artifacts import PreferencePairs
from stages.errors import ContractError, RecipeError
from stages.evaluate.evaluation import Evaluation
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

def length(prompt, completion):
    return float("nan") if "weather" in prompt else len(completion)
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
    # The prompt's tokens are those that were sampled from.
    asked_ids = {tuple(row["prompt_ids"]) for row in completions(steps["sample"].folder)}
    pairs = list(PreferencePairs(steps["shard"].folder).rows())
    assert len(pairs) == len(triples) - steps["shard"].manifest.facts["dropped"].get("equal", 0)
    assert {tuple(pair["prompt_ids"]) for pair in pairs} <= asked_ids
    assert all(pair["margin"] > 0 and pair["source"].startswith("judged/") for pair in pairs)


def test_new_prompts_cost_what_they_add_and_batches_change_nothing(sampled: Project) -> None:
    """Six prompts more, in other parts, by an engine of other batches."""
    old = completions(sampled.plan()["sample"].folder)
    ask(sampled.folder, 28)
    try:
        grown = ("sample.num_parts=5", "cluster.sample.max_num_seqs=2")
        done = sampled.run(*grown, stages=STAGES[:2])
        facts = done["sample"].step.manifest.facts
        assert (facts["asked"], facts["taken_over"], facts["prompts"]) == (6, 23, 29)
        judged = done["judge"].step.manifest.facts
        assert judged["asked"] + judged["taken_over"] == judged["questions"]
        assert 0 < judged["asked"] <= 18
        found = {(row["prompt_id"], row["sample"]): row for row in completions(done["sample"].step.folder)}
        for row in old:
            assert found[row["prompt_id"], row["sample"]] | {"source_row": row["source_row"]} == row
        # Drawn all anew, by themselves: the same.
        elsewhere = f"cluster.root={sampled.folder / 'elsewhere'}"
        whole = sampled.run(*grown, elsewhere, stages=STAGES[:1])["sample"].step
        assert whole.manifest.facts["asked"] == 29
        assert completions(whole.folder) == sorted(found.values(), key=lambda row: (row["prompt_id"], row["sample"]))
    finally:
        ask(sampled.folder, 22)


def actors_of(cluster: str, kind: str) -> list[int]:
    actors = list_actors(cluster, filters=[("state", "=", "ALIVE")], limit=1000)
    return [actor.pid for actor in actors if kind in actor.class_name]


def test_a_kill_in_the_middle_of_each_stage_changes_nothing(
    sampled: Project, tiny_model: Path, tmp_path: Path, ray_cluster: str
) -> None:
    """SIGKILL of the actor that samples, of the driver while it judges, and of an actor that writes for `evaluate`.

    There the model stands beside itself, by itself, on prompts of a file: what it writes again is what the other actor
    has written undisturbed, and it wins half.
    """
    project = Project(tmp_path)
    for name in ("judge.py", "lexicon.py"):
        shutil.copy(sampled.folder / name, tmp_path)
    asked = [f"And the night, number {i}?" for i in range(128)] + 2 * [MESSAGES]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n" for each in asked))
    recipe = {
        key: each for key, each in yaml.safe_load(sampled.recipe.read_text()).items() if key in ("sample", "judge")
    }
    section = {"policy": str(tiny_model), "prompts": str(tmp_path / "asked.jsonl"), "judge": "judge:length"}
    recipe |= {"model": str(tiny_model), "evaluate": section | {"sampling": {"num_samples": 2, "max_tokens": 6}}}
    project.recipe.write_text(yaml.safe_dump(recipe))
    project.cluster.write_text(yaml.safe_dump({"root": str(tmp_path / "runs"), "address": ray_cluster}))
    sample, judge, evaluate = (step.folder for step in project.plan().values())
    judge.mkdir(parents=True)
    (judge / ".hold").touch()
    said = tmp_path / "said.txt"

    def start() -> subprocess.Popen:
        command = [sys.executable, "-m", "pipeline", "run", str(project.recipe), "--cluster", str(project.cluster)]
        with said.open("w") as file:
            return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)

    def wait_until(true: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 120
        while not (found := true()):
            assert driver.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.01)
        return found

    def kill_one(actors: list[int], folder: Path, pattern: str, parts: int) -> None:
        """Where some parts are there, and others are not."""
        wait_until(lambda: list(folder.glob(pattern)))
        os.kill(actors[0], signal.SIGSTOP)
        assert len(list(folder.glob(pattern))) < parts
        os.kill(actors[0], signal.SIGKILL)

    def answered() -> int:
        return sum(path.read_text().count("\n") for path in judge.glob(".answers/*.jsonl"))

    driver = start()
    kill_one(wait_until(lambda: actors_of(ray_cluster, "PartSampler")), sample, "part-*", 3)
    wait_until(lambda: answered() == 30)
    driver.kill()
    driver.wait()
    while actors_of(ray_cluster, "PartJudge"):
        time.sleep(0.1)
    kept = {path: path.stat().st_mtime_ns for folder in (sample, judge) for path in folder.glob("part-*")}
    (judge / ".hold").unlink()
    assert [step.state for step in project.plan().values()] == ["hit", "partial", "miss"]
    driver = start()
    kill_one(wait_until(lambda: actors_of(ray_cluster, "_Actor")), evaluate, ".written-*/part-*", 6)
    assert driver.wait(timeout=120) == 0, said.read_text()

    assert len(kept) > 3
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    undisturbed, steps = sampled.plan(), project.plan()
    for name in ("sample", "judge"):
        folder = undisturbed[name].folder
        assert folder.name == steps[name].folder.name
        files = [path.name for path in folder.glob("*.parquet")]
        assert all(pq.read_table(steps[name].folder / file).equals(pq.read_table(folder / file)) for file in files)
    facts = steps["judge"].manifest.facts
    assert facts["asked"] == facts["questions"] == undisturbed["judge"].manifest.facts["questions"]
    rows, facts = list(Evaluation(evaluate).samples()), steps["evaluate"].manifest.facts
    assert len({row["prompt_id"] for row in rows}) == 129
    assert len({row["policy_text"] for row in rows}) > 200
    for what in ("text", "ids", "reward", "by_policy"):
        assert [row[f"policy_{what}"] for row in rows] == [row[f"reference_{what}"] for row in rows]
    assert facts["written"]["kl"] == facts["written"]["kl_k3"] == {"value": 0, "low": 0, "high": 0}
    assert facts["written"]["win rate"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert facts["written"]["judged"] == 256
    assert facts["faults"] == {"garbage": 4}  # two samples of both


def test_rounds_draw_from_the_policy_and_replay(sampled: Project) -> None:
    """Identities alone: which artifacts a second round is made of, and what a change of the judge touches."""
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
    finally:
        (sampled.folder / "lexicon.py").write_text("LIKED = 'aeiou'\n")
    assert [name for name in names if other[name].fingerprint == steps[name].fingerprint] == ["sample"]
    assert other["judge"].why.startswith("judge.function:")
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


def test_handles_are_of_what_was_written(sampled: Project) -> None:
    steps = sampled.plan()
    made = Completions(steps["sample"].folder)
    assert sum(len(made.of_all_models(number)) for number in range(3)) == 69
    assert Triples(steps["judge"].folder).graded
