"""What all commands take, how they read it, and how their errors are told."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.graph import STAGES
from pipeline.plan import Step, plan
from pipeline.recipe.load import load
from pipeline.recipe.sections import Cluster, Recipe
from pipeline.store import Store
from stages.errors import ContractError, MissingArtifact, Paused, RecipeError, is_disk_full


def _keys(begun: str) -> list[str]:
    """Fields that a shell completes to."""
    from pipeline.recipe.hints import keys

    return [f"{key}=" for key in [*keys(Recipe), *keys(Cluster)] if key.startswith(begun)]


def _stages(begun: str) -> list[str]:
    return [name for name in STAGES if name.startswith(begun)]


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="what to do: a YAML file, see configs/recipes/")]
ClusterFile = Annotated[Path, typer.Option("--cluster", help="where: a YAML file, see configs/clusters/")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="train.loss.beta=0.2, cluster.train.workers=4, ..", autocompletion=_keys
    ),
]
Only = Annotated[str | None, typer.Option("--only", metavar="STAGE", help="this stage alone", autocompletion=_stages)]
From = Annotated[
    str | None, typer.Option("--from", metavar="STAGE", help="this stage and those after it", autocompletion=_stages)
]
Until = Annotated[
    str | None, typer.Option("--until", metavar="STAGE", help="the stages up to this one", autocompletion=_stages)
]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]
CONFIGS = Path(__file__).parents[2] / "configs"
LAPTOP = CONFIGS / "clusters" / "laptop.yaml"


def load_all(recipe: Path, cluster: Path, overrides: list[str] | None) -> tuple[Recipe, Cluster, Store, list[Step]]:
    """What to do, where, and how far it is. Ends the program with a message where that cannot be."""
    with errors(Console(stderr=True)):
        what, where = load(recipe, cluster, overrides or [])
        store = Store.open(where.root, where.work)
        return what, where, store, plan(what, store)


def selected_of(only: str | None, from_: str | None, until: str | None, names: list[str]) -> list[str]:
    """The stages that --only, --from and --until name."""
    with errors(Console(stderr=True)):
        for name in filter(None, (only, from_, until)):
            if name not in names:
                raise RecipeError(f"there is no stage {name}; the stages are {', '.join(names)}")
        if only and (from_ or until):
            raise RecipeError("--only stands alone; --from and --until may be combined")
        start, stop = names.index(only or from_ or names[0]), names.index(only or until or names[-1])
        if start > stop:
            raise RecipeError(f"--from {from_} comes after --until {until}")
        return names[start : stop + 1]


@contextmanager
def errors(console: Console, log: Path | None = None) -> Iterator[None]:
    """What a user can mend is one message; all else is ours and keeps its traceback, in the log where there is one."""
    try:
        yield
    except (RecipeError, ContractError, MissingArtifact) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(2) from None
    except Paused as error:
        console.print(f"{error}. Run the same command without it to go on.", soft_wrap=True, highlight=False)
        raise typer.Exit(0) from None
    except Exception as error:
        if is_disk_full(error):
            told = f"the disk is full: {error}. Make room under cluster.root; what is finished is kept: run it again"
            console.print(f"[bold red]error:[/] {escape(told)}", soft_wrap=True, highlight=False)
            raise typer.Exit(2) from None
        if log is None:
            raise
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        lines = [line[:300] for line in str(error).splitlines() if line.strip()]
        told = "\n  ".join([type(error).__name__, *(lines if len(lines) < 4 else [*lines[:2], "..", lines[-1]])])
        console.print(f"[bold red]failed:[/] {escape(told)}", soft_wrap=True, highlight=False)
        console.print(f"The whole log: {log}. What is finished is kept: run the same command to go on.", soft_wrap=True)
        raise typer.Exit(1) from None
