"""Recipe and cluster files -> their sections: overrides, what follows from what, and checks across sections."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.recipe.evaluated import MODELS, check_evaluated, stages_of
from pipeline.recipe.explain import Key, explain, explain_truths
from pipeline.recipe.hints import check_is
from pipeline.recipe.reading import parse, read
from pipeline.recipe.secrets import passwords
from pipeline.recipe.sections import Cluster, Recipe
from stages.errors import RecipeError
from stages.storage import named
from stages.storage.place import is_remote

Section = TypeVar("Section", Recipe, Cluster)


def load(recipe: Path, cluster: Path, overrides: Sequence[str]) -> tuple[Recipe, Cluster]:
    """Read both files and apply `key=value` overrides; keys that start with "cluster." go to the cluster.

    Raises RecipeError for a missing file, bad YAML, an unknown key (with the right one) or a bad value.
    """
    what, where = read(recipe), read(cluster)
    check_is(Recipe, what, recipe)
    where_alone = dict(where)
    for override in overrides:
        _override(what, where, override)
    _name_loss(what)
    what.setdefault("name", recipe.stem)
    spread = _spread_model(what, stages_of(what))
    _choose_source(what)
    _place_judge(what, recipe.parent)
    checked = _followed(_check(Recipe, what, recipe, spread))
    _check_source(checked)
    _check_rows(checked)
    _check_rounds(checked)
    _check_quantized(checked)
    check_evaluated(checked)
    check_is(Cluster, where_alone, cluster)
    return checked, _check(Cluster, where, cluster, {})


def load_cluster(cluster: Path, overrides: Sequence[str]) -> Cluster:
    """For who asks for a store, and for no recipe. Raises as `load` does."""
    where = read(cluster)
    check_is(Cluster, where, cluster)
    for override in overrides:
        if not override.startswith("cluster."):
            raise RecipeError(f"--set {override}: there is no recipe here. Fields of the cluster begin with cluster.")
        _override({}, where, override)
    return _check(Cluster, where, cluster, {})


def _override(what: dict[str, Any], where: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    keys = key.split(".")
    if not separator or not all(keys):
        raise RecipeError(f"--set {override} is not key=value, for example --set train.lr=1e-6")
    if "env_vars" in keys:
        override = f"{key}=***"
    value = parse(text, f"--set {override if len(override) < 80 else f'{override[:80]}..'}: the value")
    _name_loss(what)
    if keys[0] == "cluster" and len(keys) > 1:
        _assign(where, keys[1:], value, override)
    else:
        _assign(what, keys, value, override)


def _assign(target: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        if target.get(key) is None:  # not there, or a section without keys
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            kind = "a list, which is set as a whole" if isinstance(target, list) else "a value, not a section"
            raise RecipeError(f"--set {override}: {key} is {kind}")
    target[keys[-1]] = value


def _name_loss(what: dict[str, Any]) -> None:
    """`loss: ipo` is `loss: {name: ipo}`: so `--set train.loss.beta=..` finds a section."""
    for section in (what.get("train"), what.get("evaluate")):
        if isinstance(section, dict) and isinstance(name := section.get("loss"), str):
            section["loss"] = {"name": name}


def _spread_model(what: dict[str, Any], sections: list[str]) -> dict[Key, Key]:
    """The top-level `model` is the tokenizer, the reference and the policy's start, where these are not given.

    Returns it as the key that was typed for these, or should have been if none of them was. The reference of
    `evaluate` is that of `score`, where it is not given.
    """
    model = what.pop("model", None)
    spread: dict[Key, Key] = {}
    places: list[tuple[str, str, Any]] = [(section, MODELS[section], model) for section in sections]
    if isinstance(what.get("sample"), dict):
        places += [("sample", "tokenizer", model), ("sample", "models", [model])]
    for section, key, value in places:
        if section == "evaluate" and isinstance(score := what.get("score"), dict):
            value = score.get("model", value)
        content = {} if what.get(section) is None else what[section]
        if isinstance(content, dict):
            if key not in content:
                spread[section, key] = ("model",)
            what[section] = content if value is None or value == [None] else {key: value} | content
    return spread if model is not None or len(spread) == len(places) else {}


def _place_judge(what: dict[str, Any], folder: Path) -> None:
    """A judge's function lies beside the recipe, and its triples are what `shard` reads where that names nothing."""
    judge, shard, evaluate = what.get("judge"), what.get("shard"), what.get("evaluate")
    if isinstance(evaluate, dict) and evaluate.get("judge") is not None:
        evaluate["judge_folder"] = str(folder.resolve())
    if not isinstance(judge, dict):
        return
    if judge.get("name") == "function":
        judge["folder"] = str(folder.resolve())
    if isinstance(shard, dict) and not any(key in shard for key in ("source", "first_of", "sources")):
        shard["source"] = None


def _check_source(recipe: Recipe) -> None:
    shard = recipe.shard
    if recipe.judge is not None and recipe.sample is None:
        raise RecipeError("judge judges what sample draws, and there is no sample. Add it: sample: {source: ..}")
    if shard is None or (recipe.judge is not None and not shard.unread):
        return
    if recipe.judge is not None:
        raise RecipeError(
            f"shard reads {shard.named} and, by itself, what judge makes. Leave out shard.source, or judge"
        )
    if not shard.unread:
        raise RecipeError("shard: there is no source. Give source, sources or first_of; or sample and judge")


def _choose_source(what: dict[str, Any]) -> None:
    """Of `shard.first_of` the first one at hand is the source, else the last one."""
    shard = what.get("shard")
    if not isinstance(shard, dict) or any(shard.get(key) is not None for key in ("source", "sources")):
        return
    names = shard.get("first_of")
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        del shard["first_of"]
        shard["source"] = next((name for name in names if _is_at_hand(name)), names[-1])


def _is_at_hand(name: str) -> bool:
    return named.is_there(name) if is_remote(name) else os.path.exists(name)


def _followed(recipe: Recipe) -> Recipe:
    """What other sections say follows from `train`: the reference is calibrated against what training will compute, its
    precision and its beta, and the policy evaluated by its loss and in its precision."""
    train, score, evaluate = recipe.train, recipe.score, recipe.evaluate
    updated: dict[str, Any] = {}
    if train is not None and score is not None:
        follows: dict[str, Any] = {"dtype": train.dtype}
        if "beta" in type(train.loss).model_fields:
            follows["beta"] = train.loss.beta
        updated["score"] = score.model_copy(update={"accept": _filled(score.accept, follows)})
    if train is not None and evaluate is not None:
        updated["evaluate"] = _filled(evaluate, {"loss": train.loss, "dtype": train.dtype})
    return recipe.model_copy(update=updated)


def _filled(section: Any, follows: dict[str, Any]) -> Any:
    return section.model_copy(
        update={key: value for key, value in follows.items() if key not in section.model_fields_set}
    )


def _check_rows(recipe: Recipe) -> None:
    """What the loss trains on is what `shard` makes."""
    made = recipe.train or recipe.evaluate
    if made is None or recipe.shard is None:
        return
    loss, shard = made.loss, recipe.shard
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
    graded = shard.columns.margin or shard.columns.scores or shard.columns.preference or shard.sources
    if any(term.name == "odpo" for term in loss.terms) and not graded and shard.shape not in ("ranked", "compared"):
        raise RecipeError(
            "train.loss odpo needs to know how much better chosen is. Name the column: shard.columns.margin (or say "
            "shard.shape: ranked or compared, of rows with scores or preferences)"
        )


def _check_rounds(recipe: Recipe) -> None:
    train, rounds = recipe.train, recipe.all_rounds
    if train is None:
        return
    if rounds.sample and (recipe.judge is None or recipe.sample is None):
        raise RecipeError("rounds.sample: true draws anew in each round, and the recipe has not both sample and judge")
    if rounds.sample and recipe.sample is not None and len(recipe.sample.models) > 1:
        raise RecipeError(
            f"rounds.sample: true draws from the policy, and sample.models names {len(recipe.sample.models)} models. "
            "Name one"
        )
    if rounds.count > 1 and not train.loss.reference and not rounds.sample:
        raise RecipeError(
            f"rounds: {rounds.count} refreshes the reference between trainings, and train.loss {train.loss.name} has "
            "none. Leave rounds out, or take a loss with a reference"
        )
    if rounds.count > 1 and train.lora is not None and not train.lora.merge:
        raise RecipeError(
            f"rounds: {rounds.count} scores and trains the policy of the round before, and with train.lora only its "
            "adapter is exported. Set train.lora.merge: true"
        )


def _check_quantized(recipe: Recipe) -> None:
    """The policy's start is the reference, with the same rounding of its weights."""
    score, train = recipe.score, recipe.train
    if score is None or train is None:
        return
    if train.loss.reference and train.starts_at_reference and score.quantize != train.quantize:
        raise RecipeError(
            f"score.quantize is {score.quantize or 'null'}, and train.quantize is {train.quantize or 'null'}: the "
            "policy would not start at its reference, and the error of rounding be trained on. Set both to the same, "
            "or train.starts_at_reference: false"
        )


def _check(section: type[Section], content: dict[str, Any], path: Path, spread: Mapping[Key, Key]) -> Section:
    problems: list[str] = passwords(content)
    if problems:
        raise RecipeError("\n  ".join([f"{path}:", *problems]))
    try:
        checked = section.model_validate(content)
        problems = explain_truths(content, checked)
    except ValidationError as error:
        problems = explain(section, error.errors(), content, spread)
    if problems:
        raise RecipeError("\n  ".join([f"{path}:", *problems]))
    return checked
