"""The paper's controlled sentiment (2305.18290, section 6.1 and figure 2): reward against KL, from our own program.

Sweeps of one recipe, one scoring for all of them; then points, shares and a figure. Stopped, it goes on when run again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from infra.frontier.draw import draw
from infra.frontier.measure import Trial, figures_of, trial_of
from infra.frontier.reviews import prepare
from infra.frontier.sweeps import SCALES, Sweep
from pipeline.identity import Digests
from pipeline.plan import State, plan
from pipeline.recipe.load import load
from pipeline.store import Store
from pipeline.sweep.grid import trials
from pipeline.sweep.trials import look_at
from stages.evaluate.evaluation import Evaluation

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
    parser = argparse.ArgumentParser(prog="python -m infra.frontier", description=__doc__)
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
    for sweep in () if asked.so_far else SCALES[scale]:
        began = time.perf_counter()
        _raydpo("sweep", recipe, [*sweep.set_, *set_], f"--grid={sweep.grid}", "--at-once=2")
        print(f"{sweep.method}, seed {sweep.seed}: {time.perf_counter() - began:.0f} s", flush=True)
    figures = figures_of([trial for sweep in SCALES[scale] for trial in finished(sweep, recipe, set_)])
    told: dict[str, Any] = {"made": facts} if facts else {}
    return {"command": f"python -m infra.frontier {scale}" + " --reviews FILE" * (scale == "imdb")} | told | figures


def reference_of(reviews: Path, folder: Path, set_: list[str]) -> tuple[Path, dict[str, Any], list[str]]:
    """Of imdb: train it. The recipe beside the judge that was made for it, facts, and what to set."""
    facts = prepare(reviews, RECIPES, folder)
    own = [*set_, f"model={folder / 'random'}", f"shard.source={folder / 'sentences.jsonl'}"]
    recipe = folder / "imdb-reviews.yaml"
    _raydpo("run", recipe, own)
    what, where = load(recipe, CLUSTER, own)
    (trained,) = (step for step in plan(what, Store.open(where.root, where.work)) if step.name == "train")
    facts |= {"loss of the reference, before and after": trained.manifest.facts["before and after"]["eval/loss"]}
    model = trained.folder / "policy"
    return folder / "imdb.yaml", facts, [f"model={model}", f"sample.source={folder / 'prompts.jsonl'}"]


def finished(sweep: Sweep, recipe: Path, set_: list[str]) -> list[Trial]:
    found, where = trials(recipe, CLUSTER, [*sweep.set_, *set_], [sweep.grid], Digests(None))
    store = Store.open(where.root, where.work)
    return [
        trial_of(sweep, result.trial.fields, Evaluation(result.evaluated.folder))
        for result in (look_at(each, store) for each in found)
        if result.evaluated is not None and result.evaluated.state == State.HIT
    ]


def _raydpo(command: str, recipe: Path, set_: list[str], *more: str) -> None:
    options = [word for each in set_ for word in ("--set", each)]
    words = [sys.executable, "-m", "pipeline", command, str(recipe), "--cluster", str(CLUSTER), *options, *more]
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
