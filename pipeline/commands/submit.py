"""submit, status, cancel: a recipe's stages as jobs of a Ray cluster."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.commands.arguments import (
    AsJson,
    ClusterFile,
    From,
    Only,
    Overrides,
    RecipeFile,
    Until,
    errors,
    load_all,
    selected_of,
)
from pipeline.identity import Digests
from pipeline.plan import State, identify, is_needed
from pipeline.recipe.load import load
from stages.errors import RecipeError

OfCluster = Annotated[Path, typer.Option("--cluster", help="where: a YAML file that names a dashboard")]


def submit_command(
    recipe: RecipeFile,
    cluster: OfCluster,
    set_: Overrides = None,
    only: Only = None,
    from_: From = None,
    until: Until = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="print what the jobs print, until the last one ends")
    ] = False,
) -> None:
    """Send the stages to a Ray cluster, a job each. The same work has the same id, so it is never sent twice."""
    from pipeline.cluster import jobs
    from pipeline.cluster.luggage import packed

    with errors(Console(stderr=True)):
        what, where = load(recipe, cluster, set_ or [])
        digests = Digests(None)
        identities = identify(what, digests)
        selected = [identities[name] for name in selected_of(only, from_, until, list(identities))]
        chosen = [one for one in selected if only or is_needed(one, identities.values())]
        with packed(recipe, cluster, what, digests.files) as luggage:
            options = ["--cluster", str(luggage.cluster), *(word for each in set_ or [] for word in ("--set", each))]
            sent = jobs.jobs_of(chosen, luggage.recipe, options)
            jobs.submit(where, sent, luggage.folder)
        for job in sent:
            print(job.id, flush=True)
        for job in sent if follow else ():
            if code := jobs.follow(where, job.id, lambda text: print(text, end="", flush=True)):
                raise typer.Exit(code)


def status_command(recipe: RecipeFile, cluster: ClusterFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """How far each stage of a recipe is: its artifact, as the store has it, and its job, as the cluster tells it."""
    from pipeline.cluster import jobs

    _, where, _, steps = load_all(recipe, cluster, set_)
    known, silence = {}, ""
    if where.dashboard:
        try:
            known = jobs.statuses(where)
        except RecipeError as error:
            silence = str(error)
    rows = [
        {"stage": step.name, "state": step.state, "why": step.why, "job": known.get(jobs.id_of(step), "")}
        | {"id": jobs.id_of(step)}
        for step in steps
        if step.state != State.NOT_NEEDED
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("stage", "artifact", "why", "job", "id")
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("stage", "state", "why", "job", "id")))
    Console().print(table)
    if silence:
        Console(stderr=True).print(silence, soft_wrap=True, highlight=False)


def cancel_command(recipe: RecipeFile, cluster: OfCluster, set_: Overrides = None, only: Only = None) -> None:
    """Stop the jobs of a recipe. What they have finished is kept, and the next submit goes on from there."""
    from pipeline.cluster import jobs

    with errors(Console(stderr=True)):
        what, where = load(recipe, cluster, set_ or [])
        identities = identify(what, Digests(None))
        names = selected_of(only, None, None, list(identities))
        stopped = jobs.cancel(where, [jobs.id_of(identities[name]) for name in names])
    print("\n".join(f"{job} is stopped" for job in stopped) or "no job of this recipe lives")
