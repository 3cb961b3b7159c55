"""raydpo report: one page of what some runs have come to."""

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.commands.arguments import LAPTOP, ClusterFile, Overrides, errors, load_all
from pipeline.identity import Digests
from pipeline.plan import plan
from pipeline.recipe.sections import Recipe
from pipeline.store import Store
from pipeline.sweep.grid import trials
from pipeline.view.report.run import Run, named, path_of
from stages.errors import RecipeError

Recipes = Annotated[list[Path], typer.Argument(metavar="RECIPE [RECIPE ..]", help="several are laid over each other")]


def report_command(
    recipes: Recipes,
    cluster: ClusterFile = LAPTOP,
    set_: Overrides = None,
    grid: Annotated[
        list[str] | None, typer.Option("--grid", metavar="KEY=VALUE,..", help="trials of a sweep, over each other")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="the page; its figures go beside it")] = None,
) -> None:
    """Write one HTML page of data, scoring, training, evaluation and lineage, as far as they are."""
    runs = runs_of(recipes, cluster, set_, grid)
    with errors(Console(stderr=True)):
        path = out if out is not None else path_of(runs)
        written = write_page(runs, path)
        figures = f" {len(written) - 1} figures as PNG beside it." if written[1:] else ""
        Console().print(f"The report: {path}.{figures}", soft_wrap=True, highlight=False)


def runs_of(recipes: list[Path], cluster: Path, set_: list[str] | None, grid: list[str] | None = None) -> list[Run]:
    """Each recipe, or each trial of a grid, with what the store has of it."""
    if not grid:
        loaded = [(recipe, *load_all(recipe, cluster, set_)) for recipe in recipes]
        return named([(recipe, Run(what.name, steps, store)) for recipe, what, _, store, steps in loaded])
    with errors(Console(stderr=True)):
        if len(recipes) > 1:
            raise RecipeError(f"--grid is of one recipe, and {len(recipes)} are named: {', '.join(map(str, recipes))}")
        found, where = trials(recipes[0], cluster, set_ or [], grid, Digests(None))
        store = Store.open(where.root, where.work)
        return [Run(trial.label, plan(trial.recipe, store), store) for trial in found]


def write_page(runs: list[Run], path: Path) -> list[Path]:
    """Raises RecipeError where it cannot be written."""
    from pipeline.view.report.page import write  # with matplotlib, which takes a second

    try:
        return write(runs, path)
    except OSError as error:
        told = f"the report {path} cannot be written: {error.strerror}. Choose another: --out FILE"
        raise RecipeError(told) from error


def write_after(what: Recipe, store: Store, remade: bool, console: Console) -> None:
    """The report of a run that has ended, if it has made something or there is none. It fails no run."""
    try:
        runs = [Run(what.name, plan(what, store), store)]
        path = path_of(runs)
        if remade or not path.exists():
            write_page(runs, path)
        console.print(f"The report: {path}", soft_wrap=True, highlight=False)
    except Exception as error:
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        told = f"[yellow]Warning:[/] no report could be made ({type(error).__name__}); the run stands"
        console.print(f"{told}. Again, with the reason: raydpo report RECIPE", soft_wrap=True, highlight=False)
