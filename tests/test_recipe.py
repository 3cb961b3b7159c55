"""Recipes and cluster files: what they say, and what they say when they are wrong."""

from pathlib import Path

import pytest
import yaml

from pipeline.recipe.load import load
from pipeline.recipe.sections import Cluster, Recipe
from stages.errors import RecipeError

GOOD = {"model": "m", "shard": {"source": "s.jsonl"}, "score": {}, "train": {}}
ROOT = Path(__file__).parents[1]


def read(tmp_path: Path, *overrides: str, **sections: object) -> tuple[Recipe, Cluster]:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(GOOD | sections))
    (tmp_path / "c.yaml").write_text("root: here\n")
    return load(tmp_path / "r.yaml", tmp_path / "c.yaml", list(overrides))


def test_one_model_serves_all_stages_unless_one_is_given(tmp_path: Path) -> None:
    recipe, _ = read(tmp_path, train={"policy": "other"})
    assert (recipe.shard.tokenizer, recipe.score.model, recipe.train.policy) == ("m", "m", "other")
    assert recipe.name == "r"


def test_overrides(tmp_path: Path) -> None:
    recipe, cluster = read(tmp_path, "train.loss.beta=0.2", "shard.columns.chosen=better", "cluster.train.workers=3")
    assert (recipe.train.loss.beta, recipe.shard.columns.chosen, cluster.train.workers) == (0.2, "better", 3)


def test_a_number_that_yaml_reads_as_text(tmp_path: Path) -> None:
    assert read(tmp_path, "train.lr=5e-7")[0].train.lr == 5e-7


def test_the_first_source_at_hand_is_taken(tmp_path: Path) -> None:
    here = tmp_path / "here.jsonl"
    here.touch()
    names = ["nowhere.jsonl", str(here), "org/set"]
    assert read(tmp_path, shard={"first_of": names})[0].shard.source == str(here)
    assert read(tmp_path, shard={"first_of": [names[0], names[2]]})[0].shard.source == "org/set"
    taken = read(tmp_path, shard={"first_of": names})[0].shard
    assert taken == read(tmp_path, shard={"source": str(here)})[0].shard  # and has the same fingerprint


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.beta=0.2", r"train\.beta: no such key; it is train\.loss\.beta, in the recipe"),
        ("trian.beta=0.2", r"trian: no such key; did you mean train\?"),
        ("shard.columns.chosn=x", r"shard\.columns\.chosn: no such key; did you mean chosen\?"),
        ("train.lora.rnk=4", r"train\.lora\.rnk: no such key; did you mean rank\?"),
        ("train.loss=null", r"train\.loss: Input should be a loss: its name, .* \(given: None\)"),
        ("train.zzz=1", r"train\.zzz: no such key; known: policy, .*lr"),
        ("train.loss.beta=-1", r"train\.loss\.beta: Input should be greater than 0 \(given: -1\)"),
        ("train.schedule=step", r"train\.schedule: Input should be 'linear', 'cosine' or 'constant' \(given: 'step'\)"),
        ("cluster.score.actor=2", r"score\.actor: no such key; did you mean actors\?"),
        ("train.beta", r"--set train\.beta is not key=value"),
        ("name.x=1", r"--set name\.x=1: name is a value, not a section"),
    ],
)
def test_a_bad_key_or_value_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, override, name="r")


def test_rounds_need_a_reference_and_a_whole_policy(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"rounds: 2 refreshes the reference .* train\.loss simpo has none"):
        read(tmp_path, "rounds=2", "train.loss=simpo")
    with pytest.raises(RecipeError, match=r"only its adapter is exported\. Set train\.lora\.merge: true"):
        read(tmp_path, "rounds=2", "train.lora.rank=4")
    assert read(tmp_path, "rounds=3", "train.lora.merge=true")[0].rounds == 3


def test_a_policy_starts_at_its_reference_rounding_included(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"score\.quantize is null, and train\.quantize is nf4: the policy would not"):
        read(tmp_path, "train.quantize=nf4", "train.lora.rank=4")
    both = ("score.backend=torch", "score.quantize=nf4", "train.quantize=nf4", "train.lora.rank=4")
    assert read(tmp_path, *both)[0].train.quantize == "nf4"
    assert read(tmp_path, "train.quantize=nf4", "train.lora.rank=4", "train.starts_at_reference=false")


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no file .*r\.yaml \(looked from"):
        load(tmp_path / "r.yaml", tmp_path / "c.yaml", [])
    (tmp_path / "r.yaml").write_text("a: [1")
    with pytest.raises(RecipeError, match=r"r\.yaml is not YAML: (?s:.*)line 1"):
        load(tmp_path / "r.yaml", tmp_path / "c.yaml", [])
    with pytest.raises(RecipeError, match=r"shard\.source: Field required"):
        read(tmp_path, shard={})


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load_on_shipped_clusters(path: Path) -> None:
    for cluster in (ROOT / "configs" / "clusters").glob("*.yaml"):
        assert load(path, cluster, [])[0].name == path.stem
