"""Worked recipes: the figures of their sources, a header that says where they are from, and a plan that can be made."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, make_tokenizer
from typer.testing import CliRunner

from pipeline.cli import app

FOLDER = ROOT / "configs" / "recipes" / "published"
ZEPHYR, LLAMA = "alignment-handbook/zephyr-7b-sft-full", "meta-llama/Meta-Llama-3-8B-Instruct"
ULTRAFEEDBACK = "HuggingFaceH4/ultrafeedback_binarized"
NORM = {"name": "sigmoid_norm", "beta": 5.0}
MPO = [
    {"name": "sigmoid", "beta": 0.1, "weight": 0.8},
    {"name": "bco_pair", "beta": 0.1, "weight": 0.2},
    {"name": "sft", "weight": 1.0, "mean_over": "completion"},
]


def simpo(beta: float, gamma_beta_ratio: float) -> dict[str, Any]:
    return {"name": "simpo", "beta": beta, "gamma_beta_ratio": gamma_beta_ratio}


# As the sources have them, which each file names: an edit of a recipe is an edit here.
COLUMNS = (
    "model", "source", "loss", "lr", "schedule", "warmup", "weight_decay", "batch", "epochs", "clip",
    "max_length", "max_prompt_length",
)  # fmt: skip
FIGURES = {
    "zephyr-7b": (
        ZEPHYR, ULTRAFEEDBACK,
        {"name": "sigmoid", "beta": 0.01}, 5e-7, "cosine", 0.1, 0, 128, 1, 1.0, 1024, 512,
    ),
    "tulu3-8b": (
        "allenai/Llama-3.1-Tulu-3-8B-SFT", "allenai/llama-3.1-tulu-3-8b-preference-mixture",
        NORM, 5e-7, "linear", 0.1, 0, 128, 1, None, 2048, 2047,
    ),
    "tulu3-70b": (
        "allenai/Llama-3.1-Tulu-3-70B-SFT", "allenai/llama-3.1-tulu-3-70b-preference-mixture",
        NORM, 2e-7, "linear", 0.1, 0, 128, 1, None, 2048, 2047,
    ),
    "olmo2-7b": (
        "allenai/OLMo-2-1124-7B-SFT", "allenai/olmo-2-1124-7b-preference-mix",
        NORM, 1e-6, "linear", 0.1, 0, 128, 1, None, 2048, 2047,
    ),
    "olmo2-13b": (
        "allenai/OLMo-2-1124-13B-SFT", "allenai/olmo-2-1124-13b-preference-mix",
        NORM, 8e-7, "linear", 0.1, 0, 128, 1, None, 2048, 2047,
    ),
    "olmo2-32b": (
        "allenai/OLMo-2-0325-32B-SFT", "allenai/olmo-2-0325-32b-preference-mix",
        NORM, 5e-7, "linear", 0.1, 0, 128, 1, None, 2048, 2047,
    ),
    "olmo3-7b-instruct": (
        "allenai/Olmo-3-7B-Instruct-SFT", "allenai/Dolci-Instruct-DPO",
        NORM, 1e-6, "linear", 0.1, 0, 128, 1, None, 16384, 16383,
    ),
    "smollm3-3b": (
        "HuggingFaceTB/SmolLM3-3B-checkpoints@it-SFT", "HuggingFaceTB/smoltalk2",
        {"name": "apo_zero", "beta": 0.05}, 1e-6, "cosine", 0.1, 0, 32, 1, 0.2, 24576, None,
    ),
    "simpo-llama3-8b": (
        LLAMA, "princeton-nlp/llama3-ultrafeedback",
        simpo(2.5, 0.55), 1e-6, "cosine", 0.1, 0, 128, 1, 1.0, 2048, 1800,
    ),
    "simpo-llama3-8b-v0.2": (
        LLAMA, "princeton-nlp/llama3-ultrafeedback-armorm",
        simpo(10, 0.3), 1e-6, "cosine", 0.1, 0, 128, 1, 1.0, 2048, 1800,
    ),
    "simpo-gemma2-9b": (
        "google/gemma-2-9b-it", "princeton-nlp/gemma2-ultrafeedback-armorm",
        simpo(10, 0.5), 8e-7, "cosine", 0.1, 0, 128, 1, 1.0, 2048, 1800,
    ),
    "mpo": (
        "Qwen/Qwen2.5-7B-Instruct", ULTRAFEEDBACK,
        MPO, 5e-6, "cosine", 0.03, 0.05, 256, 1, 1.0, 6144, None,
    ),
}  # fmt: skip
RECIPES = sorted(FOLDER.glob("*.yaml"))
each = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def header(path: Path) -> str:
    """The comment that a recipe begins with, as one line."""
    text = path.read_text()
    return " ".join(line.lstrip("# ") for line in text[: text.index("\nmodel:")].splitlines())


def cluster(path: Path) -> Path:
    """The cluster file that the header names."""
    (name,) = set(re.findall(r"configs/clusters/[\w.-]+\.yaml", header(path)))
    return ROOT / name


def plan(path: Path, *overrides: str) -> tuple[int, str]:
    settings = [part for override in overrides for part in ("--set", override)]
    result = CliRunner().invoke(app, ["plan", str(path), "--cluster", str(cluster(path)), "--json", *settings])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides: a tokenizer, a context and a file of no weights, and a triple, in place of what lies in the hub."""
    folder = tmp_path_factory.mktemp("published")
    make_tokenizer(folder / "model")
    (folder / "model" / "config.json").write_text(json.dumps({"max_position_embeddings": 32768}))
    (folder / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    turns = [[{"role": "user", "content": "How?"}, {"role": "assistant", "content": answer}] for answer in ("so", "no")]
    (folder / "triples.jsonl").write_text(json.dumps({"prompt": "How?", "chosen": turns[0], "rejected": turns[1]}))
    return f"model={folder / 'model'}", f"shard.source={folder / 'triples.jsonl'}", f"cluster.root={folder / 'runs'}"


@each
def test_the_figures_are_those_of_the_source(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    shard, train = written["shard"], written["train"]
    figures = (
        written["model"], shard["source"],
        train["loss"], train["lr"], train["schedule"], train["warmup_fraction"], train.get("weight_decay", 0),
        train["global_batch"], train["epochs"], train["max_grad_norm"],
        shard["max_length"], shard.get("max_prompt_length"),
    )  # fmt: skip
    assert dict(zip(COLUMNS, figures, strict=True)) == dict(zip(COLUMNS, FIGURES[path.stem], strict=True))


def test_smollm3_ends_at_a_tenth_of_its_rate() -> None:
    shares = {path.stem: yaml.safe_load(path.read_text())["train"].get("min_lr_fraction", 0) for path in RECIPES}
    assert shares.pop("smollm3-3b") == 0.1
    assert not any(shares.values())


def test_smollm3_takes_as_many_pairs_as_its_mixture_has() -> None:
    shard = yaml.safe_load((FOLDER / "smollm3-3b.yaml").read_text())["shard"]
    assert shard["limit"] == int(0.5 * 230501) + int(0.25 * 216385)
    assert (shard["subset"], shard["split"]) == ("Preference", "tulu_3_8b_pref_mix_Qwen3_32B_Qwen3_0.6B_think")


def test_all_sets_hold_whole_dialogues() -> None:
    """Told from the first row, a column `prompt` that is one turn of several would be taken for all of the prompt."""
    assert {yaml.safe_load(path.read_text())["shard"]["shape"] for path in RECIPES} == {"implicit"}


def test_every_figure_has_its_recipe() -> None:
    assert {path.stem for path in RECIPES} == set(FIGURES)


@each
def test_the_header_names_the_source_what_differs_and_the_gpus(path: Path) -> None:
    for pattern in (r"Source: .*(arXiv \d{4}\.\d{5}|\w+/[\w-]+, \S+\.yaml)", r"Differs: +- \S", r"GPUs: \d+ of 80 GB"):
        assert re.search(pattern, header(path)), pattern
    assert cluster(path).exists()


@each
def test_it_is_planned_on_its_cluster(path: Path, stand_in: tuple[str, ...]) -> None:
    code, output = plan(path, *stand_in)
    assert code == 0, output
    states = {step["stage"]: step["state"] for step in json.loads(output)}
    score = "not needed" if path.stem.startswith("simpo") else "miss"
    assert states == {"shard": "miss", "score": score, "train": "miss"}


def test_recipes_that_differ_make_artifacts_that_differ(stand_in: tuple[str, ...]) -> None:
    """On one model and one set they still differ, by their figures."""
    policies = [json.loads(plan(path, *stand_in)[1])[-1]["fingerprint"] for path in RECIPES]
    assert len(set(policies)) == len(RECIPES)


def test_without_a_hub_the_message_names_what_is_missing(tmp_path: Path) -> None:
    code, output = plan(FOLDER / "zephyr-7b.yaml", f"cluster.root={tmp_path}")
    assert code == 2
    assert re.search(rf"error: shard\.source: {ULTRAFEEDBACK} is no local path .* the hub did not answer", output)
