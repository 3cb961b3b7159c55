"""What leaves the store: TRL trains on it, averages are averages, a hub has the policy and its card."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import torch
import yaml
from conftest import ROOT, Project, make_llama
from hub_server import Hub
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.keeping.hub import pack
from stages import schema
from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.errors import ContractError, RecipeError
from stages.sharing.average import Ties, average
from stages.sharing.trl import named, rows


def here(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def of(project: Project) -> tuple[object, ...]:
    return project.recipe, "--cluster", project.cluster


def test_trl_trains_a_step_on_an_export_without_its_reference(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    done = here("export", *of(trained), "--trl", tmp_path / "trl")
    assert done.exit_code == 0, done.output
    steps = trained.plan()
    text = (tmp_path / "trl" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)^trainer =", text, re.DOTALL | re.MULTILINE)
    told: dict[str, Any] = {}
    exec(code[1], told)  # what the README says, as far as the trainer's arguments
    counts = {name: len(rows) for name, rows in told["pairs"].items()}
    assert counts == {key: steps["shard"].manifest.facts[key] for key in ("train", "eval")}

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", None)  # nobody asks a reference
    trainer = told["Precomputed"](
        AutoModelForCausalLM.from_pretrained(steps["train"].config.policy, dtype=torch.float32),
        args=DPOConfig(
            output_dir=str(tmp_path / "dpo"), precompute_ref_log_probs=True, max_length=None, max_steps=1,
            logging_steps=1, use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=4, save_strategy="no",
        ),
        processing_class=told["AutoTokenizer"].from_pretrained(steps["train"].config.policy),
        train_dataset=told["pairs"]["train"],
    )  # fmt: skip
    trainer.train()
    assert trainer.ref_model is None
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the policy starts at the reference
    assert first["logps/chosen"] < -1

    again = here("export", *of(trained), "--trl", tmp_path / "trl")
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    none = here("export", *of(trained), "--trl", tmp_path / "other", "--set", "train.loss=orpo")
    assert none.exit_code == 2
    assert "needs no reference, so that nothing was scored" in none.stderr.replace("\n", " ")
    missing = here("export", *of(trained), "--trl", tmp_path / "other", "--set", "score.dtype=bfloat16")
    assert "score is a miss: there is nothing to export yet" in missing.stderr.replace("\n", " ")


def test_what_trl_cannot_be_told_is_left_out(inputs: tuple[PreferencePairs, ReferenceLogprobs]) -> None:
    pairs, logprobs = inputs
    table = pairs.read(pairs.parts[0]).slice(0, 4)
    scored = logprobs.read_unchecked(pairs.parts[0]).slice(0, 4)
    chosen = table["chosen_ids"].to_pylist()
    trained = [[0, 2], [0, 1, 2, 3], *([0, len(ids)] for ids in chosen[2:])]
    column = table.schema.get_field_index("chosen_trained")
    table = table.set_column(column, schema.PAIRS.field("chosen_trained"), [pa.array(trained, pa.list_(pa.int32()))])
    error = pa.array([None, None, "chosen: none", None], pa.string())
    scored = scored.set_column(scored.schema.get_field_index("error"), "error", [error])
    told, aside = rows(table, scored)
    assert aside == {"not scored": 1, "context in a completion": 1}
    assert told["chosen_ids"].to_pylist() == [chosen[0][:2], chosen[3]]  # nobody looks at what is after the trained ids
    assert told["rejected_ids"].to_pylist() == [table["rejected_ids"].to_pylist()[i] for i in (0, 3)]
    assert told["ref_chosen_logps"].to_pylist() == [scored["ref_chosen_logps"].to_pylist()[i] for i in (0, 3)]
    assert [named(split) for split in ("train", "eval", "eval/red-team")] == ["train", "eval", "eval.red_team"]


@pytest.fixture(scope="module")
def moved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with other weights."""
    return moved_from(tiny_model, tmp_path_factory.mktemp("moved") / "model")


def moved_from(start: Path, folder: Path) -> Path:
    shutil.copytree(start, folder)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return folder


def test_an_average_is_the_average(tiny_model: Path, moved: Path, tmp_path: Path) -> None:
    average([tiny_model, moved], [0.25, 0.75], tmp_path / "out", file_bytes=60_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    one, other, mean = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (tiny_model, moved, tmp_path / "out")
    )
    for name, weight in mean.items():
        torch.testing.assert_close(weight, 0.25 * one[name] + 0.75 * other[name])
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tiny_model / "tokenizer.json").read_bytes()


def test_what_policies_agree_on_is_added_to_their_start(tiny_model: Path, moved: Path, tmp_path: Path) -> None:
    """TIES as its paper says it (section 4, with lambda 1), a number at a time."""
    other = moved_from(moved, tmp_path / "other")
    average([moved, other], [1, 1], tmp_path / "out", ties=Ties(tiny_model, 0.3))
    start, one, two, merged = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (tiny_model, moved, other, tmp_path / "out")
    )
    for name, weight in merged.items():
        changes = torch.stack([one[name] - start[name], two[name] - start[name]]).flatten(1)
        for change in changes:
            change[change.abs().argsort()[: change.numel() - int(0.3 * change.numel())]] = 0
        expected = []
        for both in changes.T.tolist():
            sign = 1 if sum(both) >= 0 else -1
            agreeing = [value for value in both if value * sign > 0]
            expected.append(sum(agreeing) / max(len(agreeing), 1))
        torch.testing.assert_close((weight - start[name]).flatten(), torch.tensor(expected), atol=1e-6, rtol=1e-4)
    assert json.loads((tmp_path / "out" / "average.json").read_text())[-1] == {"base": str(tiny_model), "density": 0.3}
    with pytest.raises(RecipeError, match=r"--density 1\.5 is no share of the changes"):
        average([moved, other], [1, 1], tmp_path / "more", ties=Ties(tiny_model, 1.5))


def test_policies_without_an_average_are_refused(tiny_model: Path, moved: Path, tmp_path: Path) -> None:
    out, both = tmp_path / "out", [tiny_model, moved]
    wider = make_llama(tmp_path / "wider", intermediate_size=160)
    deeper = make_llama(tmp_path / "deeper", num_hidden_layers=3)
    untied = make_llama(tmp_path / "untied", tie_word_embeddings=False)
    for folders, weights, error, message in (
        (
            [tiny_model, wider],
            [0.5, 0.5],
            ContractError,
            r"weight is \[64, 128\] in .*, and \[64, 160\] in .*wider",
        ),
        ([tiny_model, deeper], [0.5, 0.5], ContractError, r"have not the same tensors: 9 are in one alone"),
        ([tiny_model, untied], [0.5, 0.5], ContractError, r"tie_word_embeddings is True in .*, and False in .*untied"),
        (both, [0.5, 0.6], RecipeError, "the weights 0.5, 0.6 sum to 1.1, and an average's to 1"),
        (both, [1.0], RecipeError, "there are 1 weights for 2 policies. Give one each: --weights 0.5,0.5"),
        ([tiny_model], [1.0], RecipeError, "an average is of two policies at least, and 1 is named"),
        (
            [tiny_model, tmp_path],
            [0.5, 0.5],
            RecipeError,
            "holds no config.json. Name the folder of an exported policy",
        ),
    ):
        with pytest.raises(error, match=message):
            average(folders, weights, out)
        assert not out.exists()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(RecipeError, match="is an adapter, and the product of averages is not the average of products"):
        average([tiny_model, tmp_path / "adapter"], [0.5, 0.5], out)


def test_policies_are_named_by_recipes_artifacts_and_folders(trained: Project, tmp_path: Path) -> None:
    step = trained.plan()["train"]
    names = (trained.recipe, f"train/{step.folder.name}", step.folder / "policy")
    done = here("merge", *names, "--cluster", trained.cluster, "--weights", "0.5,0.25,0.25", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    one, mean = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (step.folder / "policy", tmp_path / "out")
    )
    assert all(torch.allclose(weight, mean[name]) for name, weight in one.items())
    bad = here("merge", *names, "--cluster", trained.cluster, "--weights", "a,b", "--out", tmp_path / "other")
    assert "--weights a,b are not numbers" in bad.stderr
    pairs = trained.plan()["shard"].folder.name
    other = here("merge", f"shard/{pairs}", pairs, "--cluster", trained.cluster, "--out", tmp_path / "other")
    assert f"shard/{pairs} is no finished training but a finished shard" in other.stderr.replace("\n", " ")


def test_an_adapter_names_its_model_as_others_know_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "base_model_name_or_path": "/home/me/model"}))
    (tmp_path / "README.md").write_text("peft's own")
    files = pack("org/name", tmp_path, [], {}, "card", "org/base").files
    assert json.loads(files["adapter_config.json"]) == {"r": 8, "base_model_name_or_path": "org/base"}
    assert files["README.md"] == b"card"
    assert (
        pack("org/name", tmp_path, [], {}, "card", None).files["adapter_config.json"]
        == tmp_path / "adapter_config.json"
    )


def push(project: Project, hub: Hub, token: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "push",
        str(project.recipe),
        "org/tiny",
        "--cluster",
        str(project.cluster),
    ]
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)


def test_a_hub_has_the_policy_and_its_card(trained: Project) -> None:
    dry = here("push", *of(trained), "org/tiny", "--dry-run", "--license", "apache-2.0")
    assert dry.exit_code == 0, dry.output
    card = dry.stdout.partition("README.md:\n\n")[2]
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "transformers"
    step = trained.plan()["train"]
    facts = step.manifest.facts["before and after"]
    assert f"| eval/loss | {facts['eval/loss'][0]:.4g} | {facts['eval/loss'][1]:.4g} |" in card
    assert "triples.jsonl" in card
    assert str(trained.folder) not in card  # folders of who made it
    assert f"`{step.fingerprint[:12]}`" in card
    assert (
        "tiny is no name of a repository. Give it as org/name" in here("push", *of(trained), "tiny", "--dry-run").stderr
    )

    hub = Hub("secret")
    refused = push(trained, hub, "wrong")
    assert refused.returncode == 2, refused.stderr
    assert f"{hub.url} did not take org/tiny: " in refused.stderr
    assert not hub.files
    sent = push(trained, hub, "secret")
    assert sent.returncode == 0, sent.stderr
    assert hub.made[0]["visibility"] == "private"
    for path in (step.folder / "policy").rglob("*"):
        assert hub.files[f"org/tiny/{path.name}"] == path.read_bytes()
    assert hub.files["org/tiny/metrics.jsonl"] == (step.folder / "metrics.jsonl").read_bytes()
    assert b"# tiny" in hub.files["org/tiny/README.md"]
    for name in ("train-loss", "train-accuracies", "train-rewards", "train-logps"):
        assert f"![{name}](figures/{name}.png)".encode() in hub.files["org/tiny/README.md"]
        assert hub.files[f"org/tiny/figures/{name}.png"].startswith(b"\x89PNG")
    hub.http.shutdown()
