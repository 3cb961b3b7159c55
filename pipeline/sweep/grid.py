"""A grid of fields and values -> the trials of a sweep: recipes that differ in these fields alone."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.identity import Digests
from pipeline.plan import Identity, identify
from pipeline.recipe.load import load
from pipeline.recipe.reading import parse
from pipeline.recipe.sections import Cluster, Recipe
from stages.errors import RecipeError
from stages.train.config import TrainConfig


@dataclass(frozen=True)
class Trial:
    fields: dict[str, Any]  # what distinguishes it, as --set has it
    recipe: Recipe
    trained: Identity  # its last training

    @property
    def train(self) -> TrainConfig:
        assert isinstance(self.trained.config, TrainConfig)
        return self.trained.config

    @property
    def label(self) -> str:
        return " ".join(
            f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in self.fields.items()
        )


def trials(
    recipe: Path, cluster: Path, overrides: Sequence[str], grid: Sequence[str], digests: Digests
) -> tuple[list[Trial], Cluster]:
    """Every combination of the values of `grid`, "key=value,value,..", the last key changing fastest.

    Raises RecipeError where a trial is no recipe, or two of them are one.
    """
    found: dict[str, Trial] = {}
    axes = [_axis(text) for text in grid]
    if twice := {key for key, _ in axes if [each for each, _ in axes].count(key) > 1}:
        raise RecipeError(f"--grid names {min(twice)} twice. Put all its values into one: --grid {min(twice)}=A,B")
    for values in itertools.product(*(values for _, values in axes)):
        fields = dict(zip((key for key, _ in axes), values, strict=True))
        # A section before its fields, which it would replace.
        set_ = [f"{key}={json.dumps(fields[key])}" for key in sorted(fields, key=lambda key: key.count("."))]
        what, where = load(recipe, cluster, [*overrides, *set_])
        if what.train is None:
            raise RecipeError("a sweep trains, and evaluate.policy names a policy that is there. Leave it out")
        trained = [each for each in identify(what, digests).values() if each.stage.name == "train"][-1]
        trial = Trial(fields, what, trained)
        if other := found.get(trained.fingerprint):
            raise RecipeError(
                f"two trials of the grid train the same policy: {other.label}, and {trial.label}. Leave one out"
            )
        found[trained.fingerprint] = trial
    return list(found.values()), where


def _axis(text: str) -> tuple[str, list[Any]]:
    key, separator, values = text.partition("=")
    if not separator or not all(key.split(".")):
        raise RecipeError(f"--grid {text} is not key=value,value, for example --grid train.loss.beta=0.05,0.1")
    if key.split(".")[0] == "cluster":
        raise RecipeError(f"--grid {text}: what stands in the cluster file changes no result. Use --set for it")
    found = parse(f"[{values}]", f"--grid {key}: the values")
    if not found or None in found:
        raise RecipeError(f"--grid {text}: a value is missing, or one comma too many. Give key=value,value")
    return key, found
