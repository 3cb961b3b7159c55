"""The evaluate stage: figures that are those of training and of exact sums, on any two models, after any stop."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import Project
from rich.console import Console
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.runner import Done
from pipeline.view.tables import print_done
from stages.artifacts import PolicyCheckpoint, PreferencePairs, ReferenceLogprobs
from stages.errors import RecipeError
from stages.evaluate.config import EvaluateConfig, EvaluateResources
from stages.evaluate.evaluation import Evaluation
from stages.evaluate.run import evaluate
from stages.progress import Silent

END = 1  # the tiny model's end token
ASKED = "evaluate={sampling: {num_samples: 24, max_tokens: 2}, judge: 'letters:vowels'}"
JUDGE = """from more import COUNTED

def vowels(prompt, completion):
    assert "How was the" in prompt
    return sum(completion.count(each) for each in COUNTED)
"""


class _Stop(Silent):
    """Ends a run once `parts` are done."""

    def __init__(self, parts: int):
        self._parts = parts

    def advance(self, done: int, **_: Any) -> None:
        if done == self._parts:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def evaluated(trained: Project) -> Evaluation:
    """The finished project's policy beside its reference: 24 samples of two tokens to each held-out prompt. The run
    was stopped when both had written, and taken up again."""
    (trained.folder / "letters.py").write_text(JUDGE)
    (trained.folder / "more.py").write_text("COUNTED = 'aeiou'\n")
    steps = trained.plan(ASKED)
    out, policy = steps["evaluate"].folder, PolicyCheckpoint(steps["train"].folder).policy
    pairs, logprobs = PreferencePairs(steps["shard"].folder), ReferenceLogprobs(steps["score"].folder)
    config = steps["evaluate"].config.model_copy(update={"policy": str(policy)})
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            config, pairs=pairs, logprobs=logprobs, out=out, resources=EvaluateResources(), progress=_Stop(2)
        )  # fmt: skip
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


def test_rewards_are_the_judge_s(evaluated: Evaluation) -> None:
    rows, written = list(evaluated.samples()), evaluated.figures["written"]
    for writer in ("policy", "reference"):
        counts = [sum(map(row[f"{writer}_text"].count, "aeiou")) for row in rows]
        assert [row[f"{writer}_reward"] for row in rows] == counts
        assert written["reward"][writer]["value"] == pytest.approx(np.mean(counts))
    better = [np.sign(row["policy_reward"] - row["reference_reward"]) for row in rows]
    assert written["win rate"]["value"] == pytest.approx((np.mean(better) + 1) / 2)
    assert written["win rate"]["low"] < written["win rate"]["value"] < written["win rate"]["high"]


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


@pytest.mark.usefixtures("ray_cluster")
def test_a_model_beside_itself(tiny_model: Path, tmp_path: Path) -> None:
    """By itself on two names of one model, and prompts of a file: both write the same, and win half."""
    prompts = tmp_path / "prompts.jsonl"
    dialogue = [{"role": "user", "content": "How was the weather?"}]
    asked = ["How was the day?", "How was the night?", dialogue, dialogue]
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked))
    (tmp_path / "judge.py").write_text(
        "def length(prompt, completion):\n    return float('nan') if 'weather' in prompt else len(completion)\n"
    )
    recipe = tmp_path / "alone.yaml"
    section = {
        "policy": str(tiny_model),
        "reference": str(tiny_model),
        "prompts": str(prompts),
        "judge": "judge:length",
    }
    recipe.write_text(yaml.safe_dump({"evaluate": section | {"sampling": {"num_samples": 3, "max_tokens": 6}}}))
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"root": str(tmp_path / "runs")}))
    alone = Project(tmp_path, recipe)
    done = alone.run(stages=["evaluate"])["evaluate"]
    rows, facts = list(Evaluation(done.step.folder).samples()), done.step.manifest.facts
    assert list(alone.plan()) == ["evaluate"]
    assert len(rows) == 9
    assert all(row["policy_ids"] == row["reference_ids"] for row in rows)
    assert len({row["policy_text"] for row in rows}) == 9
    assert facts["written"]["kl"] == facts["written"]["kl_k3"] == {"value": 0, "low": 0, "high": 0}
    assert facts["written"]["win rate"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert facts["written"]["judged"] == 6
    assert facts["faults"] == {"garbage": 6}  # three samples of both
    assert [row["policy_reward"] for row in rows].count(None) == 3


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
