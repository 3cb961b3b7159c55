"""What to do (Recipe) and where (Cluster), read from YAML. Only the recipe enters an artifact's identity."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from stages.config import Config
from stages.errors import RecipeError
from stages.score.config import ScoreConfig, ScoreResources
from stages.shard.config import ShardConfig, ShardResources
from stages.train.config import TrainConfig, TrainResources


class Wandb(Config):
    """Follow training in wandb; offline where no key is set. Watching does not change the artifact."""

    project: str
    entity: str | None = None


class Recipe(Config):
    name: str
    shard: ShardConfig
    score: ScoreConfig
    train: TrainConfig
    wandb: Wandb | None = None


class Cluster(Config):
    root: str = "runs"  # folder of all artifacts; every node must see it under this path
    address: str | None = None  # of a running Ray cluster ("auto", "ray://..", "host:6379"); none: start one here
    dashboard: str | None = None  # where `raydpo submit` sends jobs ("http://host:8265")
    python: str = "python"  # the interpreter of a submitted job, as a shell on the cluster's head node finds it
    env_vars: dict[str, str] = {}  # for all Ray workers
    shard: ShardResources = ShardResources()
    score: ScoreResources = ScoreResources()
    train: TrainResources = TrainResources()


Section = TypeVar("Section", Recipe, Cluster)


def load(recipe: Path, cluster: Path, overrides: Sequence[str]) -> tuple[Recipe, Cluster]:
    """Read both files and apply `key=value` overrides; keys that start with "cluster." go to the cluster.

    Raises RecipeError for a missing file, bad YAML, an unknown key (with the nearest right one) or a bad value.
    """
    what, where = _read(recipe), _read(cluster)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise RecipeError(f"--set {override} is not key=value, for example --set train.beta=0.2")
        target = where if key.startswith("cluster.") else what
        _assign(target, key.removeprefix("cluster.").split("."), yaml.safe_load(value), override)
    what.setdefault("name", recipe.stem)
    _spread_model(what)
    _spread_training(what)
    _choose_source(what)
    return _check(Recipe, what, recipe), _check(Cluster, where, cluster)


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
        given = {key: train.get(key, TrainConfig.model_fields[key].default) for key in ("dtype", "beta")}
        what["score"] = score | {"accept": given | score.get("accept", {})}


def _choose_source(what: dict[str, Any]) -> None:
    """`shard.source` may be a list, in order of preference: the first one at hand is the source, else the last one."""
    shard = what.get("shard")
    if isinstance(shard, dict) and isinstance(names := shard.get("source"), list) and names:
        shard["source"] = next((name for name in names if Path(str(name)).exists()), names[-1])


def _check(section: type[Section], content: dict[str, Any], path: Path) -> Section:
    try:
        return section.model_validate(content)
    except ValidationError as error:
        problems: list[str] = [_explain(section, problem) for problem in error.errors()]
        raise RecipeError("\n  ".join([f"{path}:", *problems])) from error


def _explain(section: type[BaseModel], problem: Any) -> str:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] != "extra_forbidden":
        given = "" if problem["type"] == "missing" else f" (given: {problem['input']!r})"
        return f"{key}: {problem['msg']}{given}"
    known = _keys(section, problem["loc"][:-1])
    nearest = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known keys: {', '.join(known)}"
    return f"{key}: no such key; {hint}"


def _keys(section: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for name in location:
        section = section.model_fields[name].annotation  # type: ignore[assignment]
    keys = list(section.model_fields)
    return [*keys, "model"] if section is Recipe else keys
