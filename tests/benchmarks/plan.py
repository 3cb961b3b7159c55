"""What `plan` says that stages will take, in time and memory, beside what they took.

Usage: python -m tests.benchmarks.plan [--only N ..]

Recipes on the demo's triples and SmolLM2, one after another in one store. The first ones are told from nothing, or from
few earlier artifacts, so the first does not count: it is what the others are told from. Prints a line a stage that had
work, then one JSON object. Quiet machines only: what ran beside it is in the times.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from stages.artifacts import Manifest
from tests.benchmarks.inputs import MODEL, ROOT

BASE: dict[str, Any] = {
    "model": str(MODEL),
    "shard": {"source": str(ROOT / "configs/data/demo_triples.jsonl"), "max_length": 256, "num_parts": 4},
    "score": {"backend": "torch", "dtype": "float32", "accept": {"calibration_pairs": 0}},
    "train": {"global_batch": 8, "max_steps": 8, "lr": 1e-5},
}
RECIPES: list[dict[str, Any]] = [
    {},
    {"shard": {"max_length": 192}, "train": {"max_steps": 12}},
    {"train": {"loss": {"name": "ipo"}, "global_batch": 16}},
    {"train": {"loss": {"name": "orpo"}, "lr": 2e-5}},
    {"train": {"lora": {"rank": 16}, "lr": 2e-4}},
    {"shard": {"max_length": 224, "limit": 120}, "train": {"optimizer": "adamw_8bit", "max_steps": 10}},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", help="recipes, from 0")
    wanted = parser.parse_args().only or range(len(RECIPES))
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as work:
        told = [row for number in wanted for row in compared(number, Path(work))]
    print(json.dumps(told))


def compared(number: int, work: Path) -> list[dict[str, Any]]:
    path = work / f"recipe-{number}.yaml"
    path.write_text(yaml.safe_dump({key: value | RECIPES[number].get(key, {}) if isinstance(value, dict) else value
                                    for key, value in BASE.items()}))  # fmt: skip
    rows = []
    for stage in ("shard", "score", "train"):  # a plan before each, as one who asks after each stage
        plan = next(row for row in json.loads(raydpo("plan", path, work, "--json")) if row["stage"] == stage)
        if plan["state"] in ("hit", "not needed"):
            continue
        raydpo("run", path, work, "--only", stage)
        manifest, bill = Manifest.read(Path(plan["path"])), plan["bill"]
        row = {"recipe": number, "stage": stage, "basis": bill["basis"]}
        row |= ratio("seconds", bill["seconds"], manifest.provenance["seconds"])
        row |= ratio("memory", (bill["memory"] or 0) / 1e9 or None, manifest.facts.get("peak_memory_gb"))
        print(row, flush=True)
        rows.append(row)
    return rows


def ratio(name: str, said: float | None, took: float | None) -> dict[str, Any]:
    if said is None or took is None:
        return {}
    return {f"{name} said": round(said, 2), f"{name} taken": round(took, 2), f"{name} ratio": round(said / took, 2)}


def raydpo(command: str, recipe: Path, work: Path, *options: str) -> str:
    arguments = [sys.executable, "-m", "pipeline", command, str(recipe), "--set", f"cluster.root={work / 'runs'}"]
    arguments += ["--set", "cluster.train.workers=1", "--set", "cluster.train.cpus_per_worker=2", *options]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-3000:])
    return done.stdout


if __name__ == "__main__":
    main()
