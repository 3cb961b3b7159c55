"""raydpo ls, rm, gc and diff: what a store holds, what may go, in what two things of it differ."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.commands.arguments import LAPTOP, AsJson, ClusterFile, Overrides, errors
from pipeline.keeping.comparison import print_differences
from pipeline.keeping.difference import Difference, Side, differences, of_artifacts
from pipeline.keeping.garbage import asked_for, dependents, sort_out
from pipeline.keeping.inventory import Inventory, Kept, find, inventory
from pipeline.keeping.listing import plain, print_columns, print_kept, told_age, told_bytes
from pipeline.keeping.removal import remove
from pipeline.keeping.uses import Name
from pipeline.plan import plan
from pipeline.recipe.load import load, load_cluster
from pipeline.recipe.reading import is_recipe
from pipeline.store import Store
from stages.artifacts import Manifest
from stages.errors import RecipeError

OfStore = Annotated[
    list[str] | None, typer.Option("--set", metavar="cluster.KEY=VALUE", help="cluster.root=FOLDER, ..")
]

Thing = Annotated[str, typer.Argument(metavar="RECIPE|ARTIFACT", help="a YAML file, or an artifact as `ls` names it")]


def ls_command(cluster: ClusterFile = LAPTOP, set_: OfStore = None, as_json: AsJson = False) -> None:
    """List the artifacts of a store: sizes, ages, what they were made from, and what needs them."""
    with _store(cluster, set_) as store:
        print_kept(inventory(store), time.time(), as_json)


def rm_command(
    artifact: Annotated[
        str, typer.Argument(metavar="ARTIFACT", help="STAGE/FINGERPRINT, its beginning, or the folder")
    ],
    cluster: ClusterFile = LAPTOP,
    set_: OfStore = None,
    with_dependents: Annotated[
        bool, typer.Option("--with-dependents", help="and all that was made from it, through others too")
    ] = False,
) -> None:
    """Remove an artifact. Refused while a living process uses it, and where others were made from it."""

    def chosen(found: Inventory) -> list[Kept]:
        kept = find(artifact, found)
        others = dependents([kept.key], found)
        if others and not with_dependents:
            told = ", ".join(f"{each} ({told_bytes(each.bytes)})" for each in others[:9])
            told += f", and {len(others) - 9} more" if len(others) > 9 else ""
            raise RecipeError(
                f"{len(others)} artifacts were made from {kept}: {told}. To remove them with it: --with-dependents"
            )
        return [*others, kept]

    with _store(cluster, set_) as store:
        _print_gone(remove(store, chosen))


def gc_command(
    recipes: Annotated[list[Path] | None, typer.Argument(metavar="RECIPE", help="keep what these ask for")] = None,
    cluster: ClusterFile = LAPTOP,
    set_: Overrides = None,
    days: Annotated[float, typer.Option(min=0, help="keep what is younger, and what that was made from")] = 7,
    trainings: Annotated[
        bool, typer.Option("--trainings", help="finished trainings and evaluations may go too, of other recipes")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="remove it; without this it is only said")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what nothing refers to: no living process, no finished training, none of the recipes, nothing young."""
    with errors(Console(stderr=True)):
        if trainings and not recipes:
            raise RecipeError("--trainings keeps only what recipes ask for, and none is given: raydpo gc RECIPE ..")
    with _store(cluster, set_, [*(recipes or [])]) as store:
        asked: dict[Name, str] = {}
        for recipe in recipes or []:
            what, _ = load(recipe, cluster, set_ or [])
            asked |= dict.fromkeys(asked_for(what, store), str(recipe))
        stays: dict[Name, str] = {}

        def chosen(found: Inventory) -> list[Kept]:
            nonlocal stays
            stays, goes = sort_out(found, asked, time.time(), days, trainings)
            return goes

        found = inventory(store)
        goes = remove(store, chosen) if yes else chosen(found)
        if as_json:
            kept = {"/".join(key): why for key, why in stays.items()}
            print(json.dumps({"removed": yes, "goes": [plain(each, found) for each in goes], "stays": kept}, indent=1))
            return
        if goes and not yes:
            _print_rows(goes)
            print("Nothing has been removed. To remove these: the same command with --yes")
        elif yes:
            _print_gone(goes)
        print(f"{len(stays)} artifacts stay" + ("" if goes else ", and none goes"))


def diff_command(
    a: Thing, b: Thing, cluster: ClusterFile = LAPTOP, set_: Overrides = None, as_json: AsJson = False
) -> None:
    """Say in what two recipes, or two artifacts, differ: their fields, and what came out. --set is for both."""
    with errors(Console(stderr=True)):
        names = a, b
        recipes = [is_recipe(name) for name in names]
        if recipes[0] != recipes[1]:
            one, other = names if recipes[0] else names[::-1]
            raise RecipeError(f"{one} is a recipe, {other} an artifact. Give two recipes, or two artifacts")
        found = _of_recipes(a, b, cluster, set_ or []) if recipes[0] else _of_artifacts(a, b, cluster, set_ or [])
        print_differences(found, names, as_json)


@contextmanager
def _store(cluster: Path, overrides: list[str] | None, recipes: list[Path] | None = None) -> Iterator[Store]:
    with errors(Console(stderr=True)):
        given = [each for each in overrides or [] if not recipes or each.startswith("cluster.")]
        where = load_cluster(cluster, given)
        yield Store.open(where.root, where.work)


def _print_gone(gone: list[Kept]) -> None:
    for kept in gone:
        print(f"removed {kept}, {told_bytes(kept.bytes)}")


def _print_rows(goes: list[Kept]) -> None:
    now = time.time()
    rows = [
        (str(kept), kept.state, told_bytes(kept.bytes), told_age(now - kept.changed), kept.recipe or "")
        for kept in goes
    ]
    print_columns([("goes", "state", "size", "age", "recipe"), *rows])
    print(f"{len(goes)} artifacts, {told_bytes(sum(kept.bytes for kept in goes))}")


def _of_recipes(a: str, b: str, cluster: Path, overrides: list[str]) -> list[Difference]:
    sides = []
    for name in (a, b):
        what, where = load(Path(name), cluster, overrides)
        sides.append([Side.of_step(step) for step in plan(what, Store.open(where.root, where.work))])
    return differences(*sides)


def _of_artifacts(a: str, b: str, cluster: Path, overrides: list[str]) -> list[Difference]:
    where = load_cluster(cluster, overrides)
    store = Store.open(where.root, where.work)
    found = inventory(store)
    one, other = (Manifest.read(store.folder(*find(name, found).key)) for name in (a, b))
    return of_artifacts(one, other)
