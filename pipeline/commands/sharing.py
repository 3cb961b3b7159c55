"""raydpo export, merge and push: what leaves the store for other tools and other people."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.commands.arguments import LAPTOP, ClusterFile, Overrides, RecipeFile, errors, load_all
from pipeline.keeping.card import card
from pipeline.keeping.hub import pack, send
from pipeline.keeping.listing import print_columns, told_bytes
from pipeline.keeping.policies import policy_at, trained
from pipeline.plan import State, Step
from pipeline.view.report.run import Run, seen
from pipeline.view.tables import print_line
from stages.artifacts import PolicyCheckpoint, PreferencePairs, ReferenceLogprobs
from stages.errors import MissingArtifact, RecipeError
from stages.model_files import adapter_at, base_of


def export_command(
    recipe: RecipeFile,
    trl: Annotated[Path, typer.Option("--trl", metavar="FOLDER", help="a `datasets` folder that TRL trains on")],
    cluster: ClusterFile = LAPTOP,
    set_: Overrides = None,
) -> None:
    """Write pairs and reference log-probs as TRL reads them, so that it needs no reference."""
    what, _, _, steps = load_all(recipe, cluster, set_)
    with errors(Console(stderr=True)):
        pairs, scored = _pairs_and_logprobs(steps)
        from pipeline.view.following.terminal import bar
        from stages.sharing.trl import export_trl

        console = Console()
        model = str(scored.origin["named"].get("model", "MODEL"))
        facts = {
            "Pairs": f"shard {pairs.fingerprint[:12]}",
            "Log-probs": f"score {scored.fingerprint[:12]}, of {model}",
        }
        with bar(console, "export", ()) as progress:
            done = export_trl(
                PreferencePairs(pairs.folder), ReferenceLogprobs(scored.folder), trl, what.name, model, facts, progress
            )
        for kind, counted in done.items():
            if counted:
                print(f"{kind}: {', '.join(f'{count} {name}' for name, count in counted.items())}")
        print(f"{trl}: its README says how TRL reads it")


def merge_command(
    policies: Annotated[
        list[str], typer.Argument(metavar="POLICY..", help="recipes, trainings as `ls` names them, folders")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="of the result; must not be there")],
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="W,W", help="one each, sum 1; left out, all alike")
    ] = None,
    ties: Annotated[
        str | None,
        typer.Option("--ties", metavar="BASE", help="what they were trained from: then what they agree on is added"),
    ] = None,
    density: Annotated[float, typer.Option(metavar="SHARE", help="of each policy's changes, with --ties")] = 0.2,
    cluster: ClusterFile = LAPTOP,
    set_: Overrides = None,
) -> None:
    """Average policies of one architecture, tensor by tensor; or merge them by TIES."""
    with errors(Console(stderr=True)):
        given = _numbers(weights) if weights else [1.0 if ties else 1 / len(policies)] * len(policies)
        folders = [policy_at(name, cluster, set_ or []) for name in policies]
        from pipeline.view.following.terminal import bar
        from stages.sharing.average import Ties, average

        how = Ties(policy_at(ties, cluster, set_ or []), density) if ties else None
        with bar(Console(), "merge", ()) as progress:
            average(folders, given, out, progress, how)
        print(f"The policy: {out}")


def push_command(
    recipe: RecipeFile,
    repo: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="the repository on the hub, which is made if need be")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would go, and print the card")] = False,
    public: Annotated[bool, typer.Option("--public", help="of a repository that is made; else it is private")] = False,
    license_: Annotated[
        str | None, typer.Option("--license", metavar="NAME", help="for the card; the base model's binds you")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="ORG/NAME", help="of the model it was started from, on the hub")
    ] = None,
    cluster: ClusterFile = LAPTOP,
    set_: Overrides = None,
) -> None:
    """Send the policy, or its adapter, to a hub, with a card made of its manifests."""
    what, _, store, steps = load_all(recipe, cluster, set_)
    with errors(Console(stderr=True)):
        step = trained(steps)
        policy = PolicyCheckpoint(step.folder).policy
        folder = store.on_disk(policy)
        beside = [step.folder / "metrics.jsonl"] if policy == folder else []
        figures = _figures(Run(what.name, steps, store), step)
        told = card(repo, steps, step, license_, base, figures)
        parcel = pack(repo, folder, beside, figures, told, base)
        if base is None and adapter_at(str(folder)) and Path(base_of(str(folder))).exists():
            here = f"the adapter names its model by a folder of this machine, {base_of(str(folder))}"
            print_line(f"Warning: {here}. Say what others call it: --base ORG/NAME", Console(stderr=True))
        print_columns([(name, told_bytes(size)) for name, size in parcel.sizes.items()])
        if dry_run:
            print(f"{len(parcel.sizes)} files would go to {repo}. README.md:\n\n{told}")
            return
        print(send(parcel, public, f"{step.recipe}: train {step.fingerprint[:12]}"))


def _figures(run: Run, step: Step) -> dict[str, bytes]:
    """Of the report, those of this training that say most."""
    from pipeline.view.report.drawing import png
    from pipeline.view.report.training import charts

    drawn = {chart.name: chart for chart in charts([made for made in seen([run], "train") if made.step is step])}
    names = [name for name in ("train-loss", "train-accuracies", "train-rewards", "train-logps") if name in drawn]
    return {f"figures/{name}.png": png(drawn[name]) for name in names}


def _pairs_and_logprobs(steps: list[Step]) -> tuple[Step, Step]:
    """Those of the last training; of a recipe without one, the last that there are."""
    by_name = {step.name: step for step in steps}
    last = next((step for step in reversed(steps) if step.stage.name in ("train", "score")), None)
    if last is None:
        raise RecipeError("this recipe makes no pairs: it has no section shard")
    pairs = by_name[last.sources["pairs"]]
    scored = last if last.stage.name == "score" else by_name.get(last.sources.get("logprobs", ""))
    if scored is None:
        raise RecipeError(
            "the loss of this recipe needs no reference, so that nothing was scored. Take one that does: --set "
            "train.loss=sigmoid"
        )
    for step in (pairs, scored):
        if step.state != State.HIT:
            raise MissingArtifact(
                f"{step.name} is a {step.state}: there is nothing to export yet. Make it: raydpo run RECIPE "
                f"--only {step.name}"
            )
    return pairs, scored


def _numbers(text: str) -> list[float]:
    try:
        return [float(each) for each in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"--weights {text} are not numbers, for example --weights 0.7,0.3") from error
