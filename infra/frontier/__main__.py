"""The paper's controlled sentiment (2305.18290, section 6.1 and figure 2): reward against KL, from our own program.

One sweep of all its policies, one scoring for all of them; then points, shares and a figure. Stopped, it goes on when
run again.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from infra.frontier.draw import draw
from infra.frontier.measure import figures_of, trial_of
from infra.frontier.reviews import prepare
from infra.frontier.sweeps import SCALES, Sweep
from pipeline.cluster.connection import connected
from pipeline.commands.arguments import errors
from pipeline.commands.stopping import stoppable
from pipeline.identity import Digests
from pipeline.plan import plan
from pipeline.recipe.load import load
from pipeline.recipe.sections import Cluster
from pipeline.store import Store
from pipeline.sweep.grid import Trial, trials
from pipeline.sweep.trials import look_at, sweep
from pipeline.view.following.terminal import bars, quiet
from stages.evaluate.evaluation import Evaluation

_PROGRAM = "python -m infra.frontier"
ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "configs" / "recipes" / "controlled-sentiment"
CLUSTER = ROOT / "configs" / "clusters" / "laptop.yaml"
# Trials run beside each other: each has a while in which it starts, on one core. Engines for a few short texts take
# longer to start than to write where they read 8,192 tokens to warm up.
PLACES = (
    "cluster.train.workers=1", "cluster.train.cpus_per_worker=1", "cluster.train.max_tokens_per_microbatch=2048",
    "cluster.train.checkpoint_steps=100",
    "cluster.sample.max_num_batched_tokens=1024",
    "cluster.evaluate.cpus_per_actor=1", "cluster.evaluate.max_num_batched_tokens=1024",
)  # fmt: skip
TITLES = {
    "vader": "SmolLM2-135M's reviews, reward: VADER",
    "imdb": "A small model of IMDb reviews, reward: a classifier",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=__doc__)
    parser.add_argument("scale", choices=SCALES)
    parser.add_argument("--reviews", type=Path, metavar="FILE", help="of imdb: JSON lines, gzipped")
    parser.add_argument("--root", type=Path, default=ROOT / "runs", help="of all artifacts")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every sweep")
    parser.add_argument("--out", type=Path, default=RECIPES, metavar="FOLDER", help="of the figure and its numbers")
    parser.add_argument("--so-far", action="store_true", help="train nothing, and tell what is finished")
    parser.add_argument("--draw", action="store_true", help="the figure alone, from the numbers that are there")
    asked = parser.parse_args()
    root, asked.out = asked.root.resolve(), asked.out.resolve()
    if asked.reviews is not None:
        asked.reviews = asked.reviews.resolve()
    os.chdir(ROOT)  # from where the recipes name what they read
    path = asked.out / f"{asked.scale}.json"
    if not asked.draw:
        if asked.scale == "imdb" and asked.reviews is None:
            parser.error("imdb needs --reviews FILE")
        asked.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_rounded(experiment(asked.scale, root, asked)), indent=1) + "\n")
    for made in draw(json.loads(path.read_text()), TITLES[asked.scale], asked.out, asked.scale):
        print(made)


def experiment(scale: str, root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Make what is missing of a scale, and say what came out."""
    set_, recipe, facts = [f"cluster.root={root}", *PLACES], RECIPES / f"{scale}.yaml", {}
    if scale == "imdb":
        recipe, facts, more = reference_of(asked.reviews, root / "frontier" / "imdb", set_)
        set_ += more
    set_ += asked.set
    found, where = policies(SCALES[scale], recipe, set_)
    store = Store.open(where.root, where.work)
    if not asked.so_far:
        train_and_evaluate(found, where, store)
    figures = figures_of(
        [
            trial_of(by, trial.fields, Evaluation(result.evaluated.folder))
            for by, trial in found
            if (result := look_at(trial, store)).evaluated is not None and result.done
        ]
    )
    told: dict[str, Any] = {"made": facts} if facts else {}
    return {"command": f"{_PROGRAM} {scale}" + " --reviews FILE" * (scale == "imdb")} | told | figures


def reference_of(reviews: Path, folder: Path, set_: list[str]) -> tuple[Path, dict[str, Any], list[str]]:
    """Of imdb: train it. The recipe beside the judge that was made for it, facts, and what to set."""
    facts = prepare(reviews, RECIPES, folder)
    own = [*set_, f"model={folder / 'random'}", f"shard.source={folder / 'sentences.jsonl'}"]
    recipe = folder / "imdb-reviews.yaml"
    _run(recipe, own)
    what, where = load(recipe, CLUSTER, own)
    (trained,) = (step for step in plan(what, Store.open(where.root, where.work)) if step.name == "train")
    facts |= {"loss of the reference, before and after": trained.manifest.facts["before and after"]["eval/loss"]}
    model = trained.folder / "policy"
    return folder / "imdb.yaml", facts, [f"model={model}", f"sample.source={folder / 'prompts.jsonl'}"]


def policies(sweeps: Sequence[Sweep], recipe: Path, set_: list[str]) -> tuple[list[tuple[Sweep, Trial]], Cluster]:
    """All trials of all sweeps, and where they run."""
    found = []
    for each in sweeps:
        own, where = trials(recipe, CLUSTER, [*each.set_, *set_], [each.grid], Digests(None))
        found += [(each, trial) for trial in own]
    return found, where


def train_and_evaluate(found: Sequence[tuple[Sweep, Trial]], where: Cluster, store: Store) -> None:
    """As `raydpo sweep` does, in which all trials differ in the same fields."""
    log = store.work / "logs" / "frontier.log"
    named = [replace(trial, fields={"of": f"{by.method}, seed {by.seed}"} | trial.fields) for by, trial in found]
    try:
        with (
            quiet(log, verbose=False) as console,
            stoppable(console, lambda: "what is finished", _PROGRAM),
            errors(console, log),
            bars(console) as bar,
        ):
            results = sweep(named, where, store, lambda: connected(where, verbose=False), bar, console.print, at_once=2)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    if failed := [f"{each.trial.label}: {each.error}" for each in results if each.error]:
        sys.exit("\n".join(failed))


def _run(recipe: Path, set_: list[str]) -> None:
    options = [word for each in set_ for word in ("--set", each)]
    words = [sys.executable, "-m", "pipeline", "run", str(recipe), "--cluster", str(CLUSTER), *options]
    if status := subprocess.run(words).returncode:
        sys.exit(status)


def _rounded(value: object) -> object:
    """Five digits: the others say nothing."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
