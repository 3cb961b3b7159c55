"""The evaluate stage: figures that are those of training and of exact sums, on any two models, after any stop."""

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Project, actors_of
from rich.console import Console
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.plan import Step, known
from pipeline.recipe.sections import Recipe, Wandb
from pipeline.runner import Done
from pipeline.store import Store
from pipeline.view.effect import read_samples
from pipeline.view.following.trackers import log_samples
from pipeline.view.tables import print_done
from stages.artifacts import PolicyCheckpoint, PreferencePairs, ReferenceLogprobs
from stages.errors import ContractError, RecipeError
from stages.evaluate.config import EvaluateConfig, EvaluateResources
from stages.evaluate.evaluation import Evaluation
from stages.evaluate.job import Job
from stages.evaluate.prompts import of_pairs
from stages.evaluate.rewards import judged
from stages.evaluate.run import evaluate
from stages.evaluate.writer import _known, _write, num_taken_over
from stages.evaluate.written import figures_of
from stages.progress import Silent

END = 1  # the tiny model's end token
ASKED = "evaluate={sampling: {num_samples: 24, max_tokens: 2}, judge: 'letters:vowels'}"
JUDGE = """from more import COUNTED

def vowels(prompt, completion):
    assert "How was the" in prompt
    return sum(completion.count(each) for each in COUNTED)

def silent_of_e(prompt, completion):
    return float("nan") if "e" in completion else 1
"""


class _Stop(Silent):
    """Ends a run once `parts` are done."""

    def __init__(self, parts: int):
        self._parts = parts

    def advance(self, done: int, **_: Any) -> None:
        if done == self._parts:
            raise KeyboardInterrupt


def kill_one_writer(cluster: str, out: Path) -> None:
    """One of the two, once the other has written: it stands still until then."""
    deadline = time.monotonic() + 120
    while len(writers := actors_of(cluster, "_Actor")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(writers[0], signal.SIGSTOP)
    while not list(out.glob(".written-*/part-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(writers[0], signal.SIGKILL)


@pytest.fixture(scope="module")
def evaluated(trained: Project, ray_cluster: str) -> Evaluation:
    """The finished project's policy beside its reference: 24 samples of two tokens to each held-out prompt. One of them
    was killed while it wrote, the run was stopped when both had written, and taken up again."""
    (trained.folder / "letters.py").write_text(JUDGE)
    (trained.folder / "more.py").write_text("COUNTED = 'aeiou'\n")
    steps = trained.plan(ASKED)
    out, policy = steps["evaluate"].folder, PolicyCheckpoint(steps["train"].folder).policy
    pairs, logprobs = PreferencePairs(steps["shard"].folder), ReferenceLogprobs(steps["score"].folder)
    config = steps["evaluate"].config.model_copy(update={"policy": str(policy)})
    with ThreadPoolExecutor(1) as threads:
        killing = threads.submit(kill_one_writer, ray_cluster, out)
        with pytest.raises(KeyboardInterrupt):
            evaluate(
                config, pairs=pairs, logprobs=logprobs, out=out, resources=EvaluateResources(), progress=_Stop(2)
            )  # fmt: skip
    killing.result()
    written = {path: pq.read_table(path) for path in out.glob(".written-*/part-*")}
    assert len(written) == 2
    assert trained.plan(ASKED)["evaluate"].state == "partial"
    assert trained.run(ASKED, stages=["evaluate"])["evaluate"].state == "done"
    assert trained.plan(ASKED)["evaluate"].state == "hit"
    rows = list(Evaluation(out).samples())
    for path, table in written.items():
        who = path.parent.name.removeprefix(".written-")
        assert [row[f"{who}_ids"] for row in rows] == table["ids"].to_pylist()
    return Evaluation(out)


def test_held_out_figures_are_those_of_training(trained: Project, evaluated: Evaluation) -> None:
    after = PolicyCheckpoint(trained.plan()["train"].folder).metrics[-1]
    (name,) = evaluated.figures["held out"]
    told = evaluated.figures["held out"][name]
    for figure, value in ((key.removeprefix("eval/"), after[key]) for key in after if key.startswith("eval/")):
        assert told[figure]["value"] == pytest.approx(value, abs=1e-4), figure
    assert told["loss"]["low"] < told["loss"]["value"] < told["loss"]["high"]
    assert sum(each["pairs"] for each in told["calibration"]["bins"]) == told["pairs"]
    rows = pq.read_table(evaluated.folder / "pairs.parquet")
    assert np.mean(rows["loss"].to_numpy()) == pytest.approx(told["loss"]["value"], abs=1e-5)


def test_samples_go_to_wandb_as_a_table(
    trained: Project, evaluated: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    steps = trained.plan(ASKED)
    recipe = Recipe(name="mine", wandb=Wandb(project="tests"))
    log_samples(recipe, steps["train"], steps["evaluate"], tmp_path, most=5)
    run = f"wandb/offline-run-*-{steps['train'].fingerprint[:32]}"
    (table,) = tmp_path.glob(f"{run}/files/media/table/*.table.json")
    expected = [
        [row["prompt"], *(row[who][told] for who in ("policy", "reference") for told in ("text", "reward", "tokens"))]
        for row in read_samples(evaluated, 5)
    ]
    assert json.loads(table.read_text())["data"] == expected


def test_rewards_are_the_judge_s(trained: Project, evaluated: Evaluation, tmp_path: Path) -> None:
    rows, written = list(evaluated.samples()), evaluated.figures["written"]
    for writer in ("policy", "reference"):
        counts = [sum(map(row[f"{writer}_text"].count, "aeiou")) for row in rows]
        assert [row[f"{writer}_reward"] for row in rows] == counts
        assert written["reward"][writer]["value"] == pytest.approx(np.mean(counts))
    better = [np.sign(row["policy_reward"] - row["reference_reward"]) for row in rows]
    assert written["win rate"]["value"] == pytest.approx((np.mean(better) + 1) / 2)
    assert written["win rate"]["low"] < written["win rate"]["value"] < written["win rate"]["high"]
    step = trained.plan(ASKED.replace("vowels", "silent_of_e"))["evaluate"]
    assert isinstance(step.config, EvaluateConfig)
    told, faults = judged(unjudged(evaluated), Job(step.config, EvaluateResources(), None, None, tmp_path))
    texts = [row[f"{who}_text"] for row in rows for who in ("policy", "reference")]
    assert faults == {"garbage": sum("e" in text for text in texts)}
    clean = [row for row in rows if "e" not in row["policy_text"] + row["reference_text"]]
    assert figures_of(told, step.config)["judged"] == len(clean) < len(rows)


def test_a_model_beside_itself_wins_half_and_costs_nothing(evaluated: Evaluation) -> None:
    samples = pq.read_table(evaluated.folder / "samples.parquet")
    rows = [
        row
        | {f"policy_{name}": row[f"reference_{name}"] for name in ("text", "ids", "stopped", "reward")}
        | dict.fromkeys(("policy_by_policy", "policy_by_reference"), row["reference_by_reference"])
        for row in samples.to_pylist()
    ]
    figures = figures_of(pa.Table.from_pylist(rows, samples.schema), EvaluateConfig(reference="-"))
    assert figures["win rate"] == (0.5, 0.5, 0.5)
    assert figures["kl"] == figures["kl_k3"] == (0, 0, 0)


def unjudged(evaluated: Evaluation) -> pa.Table:
    samples = pq.read_table(evaluated.folder / "samples.parquet")
    for who in ("policy", "reference"):
        place = samples.schema.get_field_index(f"{who}_reward")
        samples = samples.set_column(place, samples.schema.field(place), pa.nulls(len(samples), pa.float64()))
    return samples


def test_a_chat_model_compares_in_both_orders(
    trained: Project, evaluated: Evaluation, serve: Any, tmp_path: Path
) -> None:
    """It prefers the longer text, of two that are equally long the one that stands first, and fails where there is an
    e."""
    failing = {"e"}

    def reply(question: str, _: int) -> tuple[int, str]:
        first, second = question.split("<text>")[1:]
        if failing & {*first, *second}:
            return 200, "Well."
        return 200, "[[B]]" if len(second) > len(first) else "[[A]]"

    server = serve(reply)
    judge = {"name": "llm", "endpoint": server.endpoint, "model": "m", "max_rejected_fraction": 1.0}
    judge["question"] = "{prompt}<text>{first}<text>{second}"

    def planned(**fields: Any) -> Step:
        section = {"sampling": {"max_tokens": 2}, "judge": judge | fields}
        return trained.plan(f"evaluate={json.dumps(section)}")["evaluate"]

    step = planned()
    assert isinstance(step.config, EvaluateConfig)
    same = planned(endpoint="http://elsewhere", key_env="KEY", max_rejected_fraction=0.1)
    assert same.fingerprint == step.fingerprint != planned(model="n").fingerprint

    samples = unjudged(evaluated)
    job = Job(step.config, EvaluateResources(), None, None, tmp_path)
    told, faults = judged(samples, job)
    pairs, failed, expected = set(), set(), []
    for row in told.to_pylist():
        ours, theirs = row["policy_text"], row["reference_text"]
        preferred: Any = 2 * (float(len(ours) > len(theirs)),) if len(ours) != len(theirs) else (1.0, 0.0)
        if ours == theirs:
            preferred = 0.5, 0.5
        else:
            pairs.add((row["prompt"], ours, theirs))
            if "e" in ours + theirs:
                preferred = None, None
                failed.add((row["prompt"], ours, theirs))
        assert (row["policy_first"], row["policy_second"]) == preferred
        expected.append(preferred)
    verdicts = [each for each in expected if each[0] is not None]
    assert faults == {"garbage": len(expected) - len(verdicts)}
    assert 0 < len(failed) < len(pairs)
    figures = figures_of(told, step.config)
    assert figures["judged"] == len(verdicts)
    assert figures["win rate"].value == pytest.approx(np.mean(verdicts))
    assert figures["contradictions"] == np.mean([one != other for one, other in verdicts]) > 0
    assert "reward" not in figures

    asked = 2 * len(pairs - failed) + len(failed)
    assert sum(server.asked.values()) == asked
    strict = replace(job, config=planned(on_fault="stop").config)
    with pytest.raises(ContractError, match=r"the judge failed for \d+ of \d+ questions; evaluate\.judge\.on_fault is"):
        judged(samples, strict)
    failing.clear()
    whole, faults = judged(samples, strict)
    assert (whole["policy_first"].null_count, faults) == (0, {})
    assert sum(server.asked.values()) == asked + 3 * len(failed)  # what had a verdict was not asked again


def test_kl_of_samples_is_the_exact_sum(trained: Project, tiny_model: Path, evaluated: Evaluation) -> None:
    """Over all sequences of two tokens, of which the model may end after one."""
    names = str(trained.plan()["train"].folder / "policy"), str(tiny_model)
    models = [AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32) for name in names]
    shard = trained.plan()["shard"].folder
    rows = [row for part in sorted(shard.glob("part-*")) for row in pq.read_table(part).to_pylist()]
    prompts = {tuple(row["prompt_ids"]) for row in rows if row["split"] == "eval"}
    exact = [_exact_kl(list(prompt), *models) for prompt in prompts]
    written = evaluated.figures["written"]
    assert written["prompts"] == len(prompts)
    assert written["samples"] == 24 * len(prompts)
    assert np.mean(exact) > 0.05
    for name in ("kl", "kl_k3"):
        told = written[name]
        # Twice its interval's half: four standard errors. That 95 % means 95 % is tested of the figures themselves.
        assert abs(told["value"] - np.mean(exact)) < told["high"] - told["low"], name


@torch.no_grad()
def _exact_kl(prompt: list[int], policy: Any, reference: Any) -> float:
    after_one = torch.tensor([[*prompt, token] for token in range(320)])
    logps = [model(after_one).logits[:, len(prompt) - 1 :].double().log_softmax(-1) for model in (policy, reference)]
    first, second = ((logps[0][:, at].exp() * (logps[0][:, at] - logps[1][:, at])).sum(-1) for at in (0, 1))
    goes_on = logps[0][0, 0].exp()
    goes_on[END] = 0.0
    return float(first[0] + goes_on @ second)


def test_two_models_alone_and_what_the_reference_wrote_is_taken_over(
    trained: Project, evaluated: Evaluation, tmp_path: Path
) -> None:
    """On the same prompts, of a file: the same to the bit, with an engine less."""
    whole = pq.read_table(evaluated.folder / "samples.parquet")
    assert evaluated.manifest.facts["taken_over"] == 0
    root = evaluated.folder.parents[1]
    other, longer = (
        trained.plan(ASKED, each)["evaluate"] for each in ("evaluate.tie=0.5", "evaluate.sampling.max_tokens=3")
    )
    assert known(other, Store(root, root)) == [evaluated]
    assert known(longer, Store(root, root)) == []

    said = [re.findall(r"How was .*\?", prompt)[0] for prompt in dict.fromkeys(whole["prompt"].to_pylist())]
    asked: list[Any] = [*said[:2], *([{"role": "user", "content": each}] for each in said[1:])]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n" for each in asked))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "samples.parquet").write_text("no")
    policy = str(PolicyCheckpoint(trained.plan()["train"].folder).policy)
    config: Any = other.config.model_copy(update={"policy": policy, "prompts": str(tmp_path / "asked.jsonl")})
    taken = [Evaluation(tmp_path / "damaged"), evaluated]
    facts = evaluate(config, out=tmp_path / "alone", resources=EvaluateResources(), known=taken)
    assert facts["taken_over"] == len(whole)
    alone = pq.read_table(tmp_path / "alone" / "samples.parquet")
    assert set(alone["split"].to_pylist()) == {"prompts"}
    assert alone.drop_columns(["split"]).equals(whole.drop_columns(["split"]))


def test_what_is_taken_over_and_what_is_written_stand_in_the_order_of_the_prompts(
    trained: Project, evaluated: Evaluation, tmp_path: Path
) -> None:
    written = evaluated.of_reference()
    prompts = of_pairs(PreferencePairs(trained.plan()["shard"].folder), 256).to_pylist()
    some = written.filter(pa.array([i % 2 == 0 for i in range(len(prompts)) for _ in range(24)]))
    (tmp_path / "some").mkdir()
    table = pq.read_table(evaluated.folder / "samples.parquet")
    pq.write_table(table.filter(pc.is_in(table["prompt_id"], some["prompt_id"])), tmp_path / "some" / "samples.parquet")
    config: Any = trained.plan(ASKED)["evaluate"].config
    job = Job(config, EvaluateResources(), None, None, tmp_path, [Evaluation(tmp_path / "some")])
    taken = _known(job, prompts)
    assert len(taken) == len(some)
    new = written.filter(pc.invert(pc.is_in(written["prompt_id"], some["prompt_id"]))).to_pylist()
    _write(job, "reference", 0, prompts, taken, new)
    made = pq.read_table(job.written("reference", 0))
    assert made.select(written.column_names).to_pylist() == written.to_pylist()
    assert num_taken_over(job, 0) == len(some)


def test_what_both_wrote_is_shown_side_by_side(trained: Project, evaluated: Evaluation) -> None:
    command = ["show", str(trained.recipe), "--cluster", str(trained.cluster), "--set", ASKED]
    shown = CliRunner().invoke(app, [*command, "--samples", "2", "--json"])
    samples = json.loads(shown.stdout)["samples"]
    first = next(evaluated.samples())
    assert len(samples) == 2
    assert samples[0]["policy"]["text"] == first["policy_text"]
    assert samples[0]["policy"]["log_ratio"] == sum(first["policy_by_policy"]) - sum(first["policy_by_reference"])
    read = CliRunner().invoke(app, [*command, "--samples", "1"])
    assert "How was the" in read.stdout
    assert "2 tokens, cut" in read.stdout  # the line wraps in its column
    assert "policy/reference" in read.stdout
    assert f"KL {evaluated.figures['written']['kl']['value']:.3g} [" in read.stdout
    closing = Console(record=True, width=200, file=StringIO())
    print_done([Done(step, "hit", 0.0) for step in trained.plan(ASKED).values()], closing)
    told = closing.export_text()
    assert all(word in told for word in ("win rate", "reward", "KL", "The policy:")), told
    none = CliRunner().invoke(app, [*command[:-2], "--samples", "1"])
    assert none.exit_code == 2
    assert "this recipe has no evaluate: add evaluate: {}" in none.stderr


def test_it_closes_the_rounds_and_changes_no_other_stage(trained: Project) -> None:
    plain, planned = trained.plan(), trained.plan("rounds=2", ASKED)
    assert list(planned) == ["shard", "score", "train", "score-2", "train-2", "evaluate"]
    assert planned["evaluate"].sources == {"pairs": "shard", "logprobs": "score", "policy": "train-2"}
    assert [planned[name].fingerprint for name in plain] == [step.fingerprint for step in plain.values()]
    assert [planned[name].state for name in plain] == ["hit"] * 3
    unread = trained.plan("evaluate={}", "train.loss=simpo")
    assert unread["score"].state == "not needed"
    assert unread["evaluate"].sources == {"pairs": "shard", "policy": "train"}


def test_nothing_to_ask_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(policy=str(tiny_model), reference=str(tiny_model), sampling=None)
    with pytest.raises(RecipeError, match="evaluate has nothing to ask: no pair is held out"):
        evaluate(config, out=tmp_path, resources=EvaluateResources())
