"""Recipe and cluster files -> their sections: overrides, what follows from what, and checks across sections."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from pipeline.recipe.explain import explain
from pipeline.recipe.sections import Cluster, Recipe
from stages.errors import RecipeError
from stages.train.config import TrainConfig
from stages.train.objective.named.loss import BY_NAME

Section = TypeVar("Section", Recipe, Cluster)


def load(recipe: Path, cluster: Path, overrides: Sequence[str]) -> tuple[Recipe, Cluster]:
    """Read both files and apply `key=value` overrides; keys that start with "cluster." go to the cluster.

    Raises RecipeError for a missing file, bad YAML, an unknown key (with the nearest right one) or a bad value.
    """
    what, where = _read(recipe), _read(cluster)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise RecipeError(f"--set {override} is not key=value, for example --set train.lr=1e-6")
        target = where if key.startswith("cluster.") else what
        _name_loss(what)
        _assign(target, key.removeprefix("cluster.").split("."), yaml.safe_load(value), override)
    _name_loss(what)
    what.setdefault("name", recipe.stem)
    _spread_model(what)
    _spread_training(what)
    _choose_source(what)
    checked = _check(Recipe, what, recipe)
    _check_rows(checked)
    _check_rounds(checked)
    return checked, _check(Cluster, where, cluster)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise RecipeError(f"there is no file {path} (looked from {Path.cwd()})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds no sections; see configs/ for examples")
    return content


def _assign(target: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise RecipeError(f"--set {override}: {key} is a value, not a section")
    target[keys[-1]] = value


def _name_loss(what: dict[str, Any]) -> None:
    """`loss: ipo` is `loss: {name: ipo}`: so `--set train.loss.beta=..` finds a section."""
    train = what.get("train")
    if isinstance(train, dict) and isinstance(name := train.get("loss"), str):
        train["loss"] = {"name": name}


def _spread_model(what: dict[str, Any]) -> None:
    """The top-level `model` is the tokenizer, the reference and the policy's start, where these are not given."""
    model = what.pop("model", None)
    if model is not None:
        for section, key in (("shard", "tokenizer"), ("score", "model"), ("train", "policy")):
            what[section] = {key: model} | (what.get(section) or {})


def _spread_training(what: dict[str, Any]) -> None:
    """The reference is calibrated against what training will compute: its precision, and its beta."""
    train, score = what.get("train") or {}, what.get("score") or {}
    if isinstance(train, dict) and isinstance(score, dict) and isinstance(score.get("accept", {}), dict):
        given = {"dtype": train.get("dtype", TrainConfig.model_fields["dtype"].default)}
        loss = train.get("loss", {})
        kind = BY_NAME.get(str(loss.get("name", "sigmoid"))) if isinstance(loss, dict) else None
        if kind and (field := kind.model_fields.get("beta")):
            given["beta"] = loss.get("beta", field.default)
        what["score"] = score | {"accept": given | score.get("accept", {})}


def _choose_source(what: dict[str, Any]) -> None:
    """`shard.source` may be a list, in order of preference: the first one at hand is the source, else the last one."""
    shard = what.get("shard")
    if isinstance(shard, dict) and isinstance(names := shard.get("source"), list) and names:
        shard["source"] = next((name for name in names if Path(str(name)).exists()), names[-1])


def _check_rows(recipe: Recipe) -> None:
    """What the loss trains on is what `shard` makes."""
    loss, shard = recipe.train.loss, recipe.shard
    if loss.labelled and shard.rows == "pairs":
        raise RecipeError(
            f"train.loss {loss.name} trains on labelled completions, and shard.rows is pairs. Set shard.rows: "
            "labelled; triples are unrolled into two labelled completions each"
        )
    if not loss.labelled and shard.rows == "labelled":
        raise RecipeError(
            f"train.loss {loss.name} trains on pairs, and shard.rows is labelled. Set shard.rows: pairs, or take a "
            "loss of labelled completions: kto, bco, apo_zero_unpaired"
        )
    if any(term.name == "odpo" for term in loss.terms) and shard.columns.margin is None:
        raise RecipeError(
            "train.loss odpo needs to know how much better chosen is. Name the column: shard.columns.margin"
        )


def _check_rounds(recipe: Recipe) -> None:
    train = recipe.train
    if recipe.rounds > 1 and not train.loss.reference:
        raise RecipeError(
            f"rounds: {recipe.rounds} refreshes the reference between trainings, and train.loss {train.loss.name} has "
            "none. Leave rounds out, or take a loss with a reference"
        )
    if recipe.rounds > 1 and train.lora is not None and not train.lora.merge:
        raise RecipeError(
            f"rounds: {recipe.rounds} scores and trains the policy of the round before, and with train.lora only its "
            "adapter is exported. Set train.lora.merge: true"
        )


def _check(section: type[Section], content: dict[str, Any], path: Path) -> Section:
    try:
        return section.model_validate(content)
    except ValidationError as error:
        problems: list[str] = [explain(section, problem) for problem in error.errors()]
        raise RecipeError("\n  ".join([f"{path}:", *problems])) from error
