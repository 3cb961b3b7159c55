"""raydpo: init, plan, run, show, verify, submit, sweep, recipes. Heavy imports wait until there is work for them."""

import json
import time
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from pipeline.bill.bill import bill_of
from pipeline.cluster.room import living
from pipeline.commands.arguments import (
    LAPTOP,
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
from pipeline.commands.doctor import doctor_command
from pipeline.commands.init import init_command
from pipeline.commands.keeping import diff_command, gc_command, ls_command, rm_command
from pipeline.commands.recipes import recipes_command
from pipeline.commands.report import report_command, write_after
from pipeline.commands.sharing import export_command, merge_command, push_command
from pipeline.commands.stopping import kept_of, stoppable
from pipeline.commands.submit import cancel_command, status_command, submit_command
from pipeline.commands.sweep import sweep_command
from pipeline.commands.watch import watch_command
from pipeline.look import look
from pipeline.plan import State, Step
from pipeline.recipe.load import load
from pipeline.recipe.sections import Cluster
from pipeline.runner import check_inputs, run
from pipeline.store import Store, damage
from pipeline.view.tables import print_done, print_facts, print_line, print_plan

app = typer.Typer(
    help="Preference tuning on Ray: (sample -> judge ->) shard -> score -> train (-> evaluate).", no_args_is_help=True,
    pretty_exceptions_enable=False,
)  # fmt: skip


@app.command("plan")
def plan_command(
    recipe: RecipeFile,
    cluster: ClusterFile = LAPTOP,
    set_: Overrides = None,
    live: Annotated[bool, typer.Option("--live", help="ask the running cluster whether it has room")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what each stage would do, and why, without doing it."""
    _, where, store, steps = load_all(recipe, cluster, set_)
    _look(steps, where, store, as_json, live)


@app.command("run")
def run_command(
    recipe: RecipeFile,
    cluster: ClusterFile = LAPTOP,
    set_: Overrides = None,
    only: Only = None,
    from_: From = None,
    until: Until = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="the same as plan")] = False,
    after: Annotated[str | None, typer.Option(metavar="JOB", help="within a Ray job: when this other one ends")] = None,
    profile: Annotated[
        int | None, typer.Option(metavar="STEPS", min=1, help="let so many steps of training leave a trace")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="show what Ray and vLLM print")] = False,
) -> None:
    """Make what is missing. Run again after any failure: finished work is kept."""
    if after is not None:
        from pipeline.cluster.jobs import wait

        with errors(Console(stderr=True)):
            wait(load(recipe, cluster, set_ or [])[1], after)
    if profile is not None:
        set_ = [*(set_ or []), f"cluster.train.profile_steps={profile}"]
    what, where, store, steps = load_all(recipe, cluster, set_)
    selected = selected_of(only, from_, until, [step.name for step in steps])
    if dry_run:
        _look(steps, where, store, as_json=False)
        return
    from pipeline.view.following.trackers import check, log_samples, trackers

    with errors(Console(stderr=True)):
        check_inputs(steps, selected)
        check(what)
        for line in look([step for step in steps if step.name in selected], where):
            print_line(line, Console())
    from pipeline.cluster.connection import connected
    from pipeline.view.following.terminal import bar, quiet

    by_name = {step.name: step for step in steps}
    log = store.work / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{what.name}.log"
    kept = partial(kept_of, steps, store)
    with quiet(log, verbose) as console, stoppable(console, kept), errors(console, None if verbose else log):
        done = list(
            run(
                steps, selected, where, store,
                connect=lambda: connected(where, verbose, {by_name[name].stage.name for name in selected}),
                progress=lambda name: bar(console, name, trackers(what, log, by_name[name])),
                notify=lambda message: console.print(message, soft_wrap=True),
            )
        )  # fmt: skip
        print_done(done, console)
        last = {row.step.stage.name: row for row in done}
        if {"train", "evaluate"} <= last.keys() and last["evaluate"].state == "done":
            log_samples(what, last["train"].step, last["evaluate"].step, log.parent)
        write_after(what, store, any(row.state == "done" for row in done), console)


@app.command()
def show(
    recipe: RecipeFile,
    cluster: ClusterFile = LAPTOP,
    set_: Overrides = None,
    as_json: AsJson = False,
    pairs: Annotated[int | None, typer.Option(metavar="N", min=1, help="decoded pairs instead, tokens marked")] = None,
    rejects: Annotated[bool, typer.Option("--rejects", help="rows that made no pair instead, with the reason")] = False,
    samples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="what reference and policy write instead, side by side")
    ] = None,
) -> None:
    """Show the artifacts of a recipe: facts, identity, provenance; or pairs as the model sees them, or samples."""
    _, _, store, steps = load_all(recipe, cluster, set_)
    if pairs or rejects or samples:
        from pipeline.view.rows import show_pairs, show_samples

        with errors(Console(stderr=True)):
            if samples:
                show_samples(steps, samples, as_json)
            if pairs or rejects:
                show_pairs(steps, store, pairs, rejects, as_json)
        return
    found = [step for step in steps if step.state == State.HIT]
    if as_json:
        listing = {
            step.name: {"path": str(step.folder), "fingerprint": step.fingerprint}
            | {key: getattr(step.manifest, key) for key in ("facts", "provenance", "payload")}
            for step in found
        }
        print(json.dumps(listing, indent=1))
        return
    for step in found:
        print_facts(step, Console())
    for step in steps:
        if step.state != State.HIT:
            made = "" if step.state == State.NOT_NEEDED else f". Make it: raydpo run {recipe}"
            print(f"{step.name}: {step.state}: {step.why}{made}")


@app.command()
def verify(recipe: RecipeFile, cluster: ClusterFile = LAPTOP, set_: Overrides = None) -> None:
    """Read every file of the recipe's artifacts and compare it with what the manifest says."""
    *_, steps = load_all(recipe, cluster, set_)
    bad = 0
    for step in steps:
        if step.state == State.NOT_NEEDED:
            continue
        if not (step.folder / "manifest.json").exists():
            print(f"{step.name}: {step.state}: {step.why}. Make it: raydpo run {recipe}")
            bad += 1
            continue
        problems = damage(step.folder, step.manifest, content=True)
        bad += len(problems)
        for problem in problems:
            remedy = f"Delete it and run: raydpo run {recipe} --only {step.name}"
            print(f"{step.name}: {step.folder / problem}. {remedy}")
        if not problems:
            files = step.manifest.files
            print(f"{step.name}: {len(files)} files, {sum(f.bytes for f in files):,} bytes, all as made")
    raise typer.Exit(1 if bad else 0)


app.command("submit")(submit_command)
app.command("status")(status_command)
app.command("cancel")(cancel_command)
app.command("sweep")(sweep_command)
app.command("init")(init_command)
app.command("recipes")(recipes_command)
app.command("ls")(ls_command)
app.command("rm")(rm_command)
app.command("gc")(gc_command)
app.command("diff")(diff_command)
app.command("doctor")(doctor_command)
app.command("export")(export_command)
app.command("merge")(merge_command)
app.command("push")(push_command)
app.command("report")(report_command)
app.command("watch")(watch_command)


def main() -> None:
    app()


def _look(steps: list[Step], where: Cluster, store: Store, as_json: bool, live: bool = False) -> None:
    """The plan, what it costs, and then what a run would stop at."""
    with errors(Console(stderr=True)):
        lines, bill = [], None
        try:
            lines, bill = look(steps, where, living(where) if live else None), bill_of(steps, where, store)
        finally:
            print_plan(steps, lines, as_json, bill)
