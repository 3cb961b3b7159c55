"""raydpo sweep: a table and a figure of many trainings of one recipe."""

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.commands.arguments import LAPTOP, AsJson, ClusterFile, Overrides, RecipeFile, errors
from pipeline.commands.stopping import stoppable
from pipeline.identity import Digests
from pipeline.store import Store
from pipeline.sweep.grid import Trial, trials
from pipeline.sweep.trials import look_at, sweep
from pipeline.view.sweep import draw, plain, print_results
from stages.errors import RecipeError


def sweep_command(
    recipe: RecipeFile,
    more: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE,..", help="as --grid")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=VALUE,..", help="train.loss.beta=0.05,0.1,0.3 train.loss=dpo,ipo"),
    ] = None,
    cluster: ClusterFile = LAPTOP,
    set_: Overrides = None,
    at_once: Annotated[int, typer.Option(min=1, help="trials beside each other, where the cluster has room")] = 1,
    rungs: Annotated[
        str | None, typer.Option(metavar="STEP,..", help="steps at which the worse half is given up")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say how far it is, and do nothing")] = False,
    as_json: AsJson = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="show what Ray and vLLM print")] = False,
) -> None:
    """Train a recipe once for each combination of values; pairs and log-probs are made once. Run again to go on."""
    with errors(Console(stderr=True)):
        if not (words := [*(grid or []), *(more or [])]):
            raise RecipeError("name what differs between trials: --grid train.loss.beta=0.05,0.1,0.3")
        steps = _steps(rungs)
        found, where = trials(recipe, cluster, set_ or [], words, Digests(None))
        store = Store.open(where.root, where.work)
        folder = _folder(store, found)
    if dry_run:
        print_results([look_at(trial, store) for trial in found], Console(), as_json)
        return
    from pipeline.cluster.connection import connected
    from pipeline.view.following.terminal import bars, quiet

    log = folder / "sweep.log"
    with (
        quiet(log, verbose) as console,
        stoppable(console, lambda: "what the trials have finished, and the checkpoints of the others"),
        errors(console, None if verbose else log),
        bars(console) as bar,
    ):
        results = sweep(
            found, where, store, lambda: connected(where, verbose), bar,
            lambda message: console.print(message, soft_wrap=True), at_once, steps,
        )  # fmt: skip
    (folder / "trials.json").write_text(json.dumps(plain(results), indent=1) + "\n")
    draw(results, folder)
    print_results(results, Console(), as_json)
    if not as_json:
        Console().print(f"Table and figure: {folder}", soft_wrap=True, highlight=False)
    raise typer.Exit(1 if any(each.error for each in results) else 0)


def _steps(rungs: str | None) -> list[int]:
    try:
        return [int(each) for each in rungs.split(",")] if rungs else []
    except ValueError as error:
        raise RecipeError(f"--rungs {rungs} are not steps, for example --rungs 100,200") from error


def _folder(store: Store, found: list[Trial]) -> Path:
    """Of this very set of trials."""
    names = " ".join(sorted(trial.trained.fingerprint for trial in found))
    folder = store.work / "sweeps" / f"{found[0].recipe.name}-{hashlib.sha256(names.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
