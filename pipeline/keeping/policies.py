"""Policies by the names that people have for them: a recipe, an artifact, a folder."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.keeping.inventory import find, inventory
from pipeline.plan import State, Step, plan
from pipeline.recipe.load import load, load_cluster
from pipeline.recipe.reading import is_recipe
from pipeline.store import Store
from stages.artifacts import PolicyCheckpoint
from stages.errors import MissingArtifact, RecipeError


def policy_at(name: str, cluster: Path, overrides: Sequence[str]) -> Path:
    """The folder on this machine of an exported policy. Raises RecipeError or MissingArtifact where there is none."""
    if is_recipe(name):
        what, where = load(Path(name), cluster, overrides)
        store = Store.open(where.root, where.work)
        return store.on_disk(PolicyCheckpoint(trained(plan(what, store)).folder).policy)
    if (Path(name) / "config.json").is_file() or (Path(name) / "adapter_config.json").is_file():
        return Path(name)
    where = load_cluster(cluster, [each for each in overrides if each.startswith("cluster.")])
    store = Store.open(where.root, where.work)
    kept = find(name, inventory(store))
    if kept.stage != "train" or kept.state != "finished":
        raise RecipeError(
            f"{kept} is no finished training but a {kept.state} {kept.stage}. Name one, a recipe or a folder"
        )
    return store.on_disk(PolicyCheckpoint(store.folder(*kept.key)).policy)


def trained(steps: Sequence[Step]) -> Step:
    """The last training of a recipe. Raises RecipeError where it has none, MissingArtifact where it is not finished."""
    last = next((step for step in reversed(steps) if step.stage.name == "train"), None)
    if last is None:
        raise RecipeError("this recipe trains no policy: it has no section train")
    if last.state != State.HIT:
        raise MissingArtifact(f"there is no policy yet: {last.name} is a {last.state}. Make it: raydpo run RECIPE")
    return last
