"""Names that people type: of losses, and of keys as other tools call them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_project
from test_recipe import read

from pipeline.recipe.hints import keys, of_key
from pipeline.recipe.sections import Cluster, Recipe
from pipeline.recipe.synonyms import LOSSES, OTHERWISE, SAME
from stages.errors import RecipeError
from stages.train.config import TrainConfig
from stages.train.objective.named.loss import ALIASES, BY_NAME

OURS = keys(Recipe) | keys(Cluster)
RECIPE, CLUSTER = r", in the recipe$", r", in the cluster file \(--set cluster\.{}=\.\.\)$"


@pytest.mark.parametrize("loss", ["dpo", {"name": "dpo", "beta": 0.2}, ["dpo", {"name": "sft", "weight": 2}]], ids=str)
def test_dpo_is_sigmoid(loss: Any) -> None:
    canonical = json.loads(json.dumps(loss).replace("dpo", "sigmoid"))
    configs = [TrainConfig.model_validate({"policy": "m", "loss": each}) for each in (loss, canonical)]
    assert configs[0] == configs[1]
    assert "dpo" not in configs[0].model_dump_json()


def test_dpo_has_the_fingerprint_of_sigmoid(tmp_path: Path, tiny_model: Path) -> None:
    project = make_project(tmp_path, tiny_model)
    for loss in ("{}", "[{}, sft]"):
        planned = [project.plan(f"train.loss={loss.format(name)}") for name in ("sigmoid", "dpo")]
        for stage in ("shard", "score", "train"):
            assert planned[0][stage].fingerprint == planned[1][stage].fingerprint
    named = [project.plan(f"train.loss.name={name}", "train.loss.beta=0.3")["train"] for name in ("sigmoid", "dpo")]
    assert named[0].fingerprint == named[1].fingerprint != planned[0]["train"].fingerprint
    recipe = yaml.safe_load(project.recipe.read_text())
    recipe["train"]["loss"] = {"name": "dpo", "beta": 0.3}
    project.recipe.write_text(yaml.safe_dump(recipe))
    assert project.plan()["train"].fingerprint == named[0].fingerprint


def test_the_reference_is_calibrated_as_dpo_trains(tmp_path: Path) -> None:
    recipe, _ = read(tmp_path, "train.dtype=bfloat16", train={"loss": {"name": "dpo", "beta": 0.3}})
    assert (recipe.score.accept.beta, recipe.score.accept.dtype) == (0.3, "bfloat16")
    recipe, _ = read(tmp_path, "score.accept.beta=0.5", "score.accept.dtype=null", "train.loss=sigmoid_norm")
    assert (recipe.score.accept.beta, recipe.score.accept.dtype) == (0.5, None)
    assert read(tmp_path, "train.loss=sigmoid_norm")[0].score.accept.beta == 5.0


def test_the_table_names_keys_that_there_are() -> None:
    """Where a key moves or goes, the table must follow."""
    assert [key for key in SAME.values() if key not in OURS] == []
    told = [*OTHERWISE.values(), *LOSSES.values()]
    named = {key for text in told for key in re.findall(r"\b(?:cluster|shard|score|train|wandb)\.[a-z_.]*[a-z_]", text)}
    assert len(named) > 20
    assert named - set(OURS) == set()
    alone = {key for text in told for key in re.findall(r"(?<![\w.])(rounds|tensorboard|model)\b", text)}
    assert alone <= set(OURS)


def test_the_table_has_only_what_is_not_ours() -> None:
    """A name that became a key of ours must not be told to be none."""
    last = {key.rpartition(".")[2] for key in OURS}
    assert {name for name in OTHERWISE if name in last | set(OURS)} == set()
    assert set(SAME) & set(OTHERWISE) == set(SAME) & set(OURS) == set(OTHERWISE) & set(OURS) == set()
    assert set(LOSSES) & (set(BY_NAME) - {"sum"} | set(ALIASES)) == set()
    assert set(ALIASES.values()) <= set(BY_NAME)


def test_losses_in_messages_are_ours() -> None:
    for text in [*OTHERWISE.values(), *LOSSES.values()]:
        for name in re.findall(r"name: (\w+)", text):
            assert name in BY_NAME or name in ALIASES, text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=1", r"  learning_rate: no such key; it is train\.lr" + RECIPE),
        ("shard.learning-rate=1", r"shard\.learning-rate: no such key; it is train\.lr" + RECIPE),
        ("train.lerning_rate=1", r"it is train\.lr" + RECIPE),
        ("cluster.train.learning_rate=1", r"c\.yaml:\n  train\.learning_rate: .* it is train\.lr" + RECIPE),
        ("score.lr=1", r"score\.lr: no such key; it is train\.lr" + RECIPE),
        ("lr=1", r"lr: no such key; it is train\.lr" + RECIPE),
        ("cluster.model=m", r"model: no such key; it is model" + RECIPE),
        ("train.workers=2", r"train\.workers" + CLUSTER.format(r"train\.workers")),
        ("tensor_parallel_size=2", r"it is score\.gpus_per_actor" + CLUSTER.format(r"score\.gpus_per_actor")),
        ("compile=true", r"it is score\.compile, .*\) or train\.compile" + CLUSTER.format(r"train\.compile")),
        ("beta=1", r"beta: no such key; it is train\.loss\.beta" + RECIPE),
        ("score.beta=1", r"it is score\.accept\.beta" + RECIPE),
        ("train.model=m", r"it is train\.policy" + RECIPE),
        ("train.simpo_gamma=1", r"it is train\.loss\.gamma" + RECIPE),
        ("train.loss.gamma=1", r"known: weight, .*; gamma is a key of simpo, cpo_simpo, alphapo$"),
        ("batch_size=8", r"it is train\.global_batch" + RECIPE),
        ("score.batch_size=8", r"cluster\.score\.max_num_seqs is vLLM's, cluster\.score\.max_tokens_per_batch"),
        (
            "train.gradient_accumulation_steps=8",
            r"there is none: train\.global_batch .* whatever the number of workers",
        ),
        (
            "train.ref_model=m",
            r"there is none: the reference is score\.model, and training reads its cached log-probs$",
        ),
        ("max_lenght=8", r"it is shard\.max_length" + RECIPE),
        ("train.loss=DPO", r"train\.loss: there is no loss DPO; did you mean dpo\?$"),
        ("train.loss=cdpo", r"conservative DPO is sigmoid with label_smoothing"),
        (
            "train.loss=[dpo, kto-pair]",
            r"train\.loss\.1: there is no loss kto-pair; take kto with shard\.rows: labelled",
        ),
        ("train.loss=[[dpo, ipo], sft]", r"train\.loss\.0: there is no loss sum; a sum in a sum is one list"),
    ],
)
def test_a_name_from_elsewhere_is_answered_with_ours(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, override)


def test_dots_are_not_of_files(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"train\.lr: no such key; dots are for --set; in a file it is lr, in the sec"
    ):
        read(tmp_path, **{"train.lr": 1})
    with pytest.raises(RecipeError, match=r"cluster\.root: no such key; it is root" + CLUSTER.format("root")):
        read(tmp_path, **{"cluster.root": "here"})


@pytest.mark.parametrize("place", ["", "shard.", "score.", "train.", "train.lora.", "cluster.", "cluster.train."])
def test_synonyms_are_answered_wherever_they_are_typed(place: str) -> None:
    """But where the section itself has such a key further in, or another meaning for the name."""
    inner = place.removeprefix("cluster.")
    for name in {*SAME, *OTHERWISE} - {name for name in {*SAME, *OTHERWISE} if "." in name or inner + name in SAME}:
        text, meant = of_key(place, name, ["lr"])
        if f"{inner}{name}" not in OTHERWISE and not any(inner and key.startswith(inner) for key in meant):
            assert (text, meant) == (OTHERWISE[name], []) if name in OTHERWISE else meant == [SAME[name]], name
