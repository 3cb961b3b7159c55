"""Training against workers and pairs: the speed of two workers, the time per pair, and what a large set costs to start.

Usage: python -m tests.benchmarks.scale [--model ..] [--steps 12] [--growth 2048,8192,32768] [--sets 125000,2000000]

Each measurement is the train stage on a Ray of its own, in a process of its own. Pairs are random ids, with random
log-probs in place of a reference's. One thread a worker.

- workers: SmolLM2, 1 and 2 workers on the same batches; median of the steps after the first two.
- growth: a model of 2 layers, one epoch over 1x, 4x and 16x the pairs in windows of the smallest set; seconds of the
  steps for each pair.
- start: the same model, 3 steps on a small and on a large set of short pairs, and 3 steps from step 50,000 on; seconds
  from the call of the stage to the end of the first step, Ray's workers and the loading of the model included, and the
  largest resident memory of driver and worker. The checkpoint of step 50,000 is that of step 3, renamed.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

from stages.cpu_environment import CPU_ENVIRONMENT
from tests.benchmarks.inputs import MODEL, copy_tokenizer, random_pairs, tiny_model
from tests.benchmarks.process import last_line

ROWS = 10_000  # of a part
FAR = 50_000  # a step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--growth", type=integers, default=[2048, 8192, 32768])
    parser.add_argument("--sets", type=integers, default=[125_000, 2_000_000])
    parser.add_argument("--do", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        print(json.dumps(run_stage(**options.do)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        tiny = tiny_model(work / "tiny")
        copy_tokenizer(options.model, tiny)
        print(json.dumps(workers(options, work) | growth(options, tiny, work) | start(options, tiny, work)))


def integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def workers(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    if not options.steps:
        return {}
    random_pairs(work / "few", 8 * options.steps, tokens=(120, 80, 80), rows_per_part=64)
    seconds = {}
    for count in (1, 2):
        config = {"policy": str(options.model), "global_batch": 8, "max_steps": options.steps}
        found = measure(work / "few", work / f"workers-{count}", config, {"workers": count})
        seconds[count] = statistics.median(found["step_seconds"][2:])
        print(f"{count} workers: {8 / seconds[count]:.2f} pairs/s, {found['worker_gb']:.2f} GB a worker", flush=True)
    return {"two_workers_over_one": round(seconds[1] / seconds[2], 3)}


def growth(options: argparse.Namespace, tiny: Path, work: Path) -> dict[str, Any]:
    if not options.growth:
        return {}
    found = []
    for count in options.growth:
        pairs = work / f"growth-{count}"
        random_pairs(pairs, count, tokens=(40, 30, 30), rows_per_part=256)
        config = {"policy": str(tiny), "global_batch": 64, "shuffle_window": options.growth[0]}
        each = measure(pairs, work / f"grown-{count}", config, {})
        found.append({"pair_ms": 1e3 * sum(each["step_seconds"][1:]) / (count - 64), "gb": each["worker_gb"]})
        print(f"{count} pairs: {found[-1]['pair_ms']:.2f} ms a pair, worker {found[-1]['gb']:.2f} GB", flush=True)
    return {
        "growth": round(found[-1]["pair_ms"] / found[0]["pair_ms"], 3),
        "memory_growth": round(found[-1]["gb"] / found[0]["gb"], 3),
    }


def start(options: argparse.Namespace, tiny: Path, work: Path) -> dict[str, Any]:
    if not options.sets:
        return {}
    found = []
    config = {"policy": str(tiny), "global_batch": 8, "epochs": 99}
    for count in options.sets:
        pairs, out = work / f"set-{count}", work / f"started-{count}"
        random_pairs(pairs, count, tokens=(16, 12, 12), rows_per_part=ROWS)
        found.append(measure(pairs, out, config | {"max_steps": 3}, {}))
        say(f"{count} pairs", found[-1])
    move_checkpoint(out / "checkpoints", config | {"max_steps": FAR + 3})
    found.append(measure(pairs, out, config | {"max_steps": FAR + 3}, {}))
    say(f"{count} pairs from step {FAR} on", found[-1])
    small, large, far = found
    memory = [each["driver_gb"] + each["worker_gb"] for each in found]
    return {
        "first_step_s": round(large["first_step_s"], 1),
        "start_growth": round(large["first_step_s"] / small["first_step_s"], 3),
        "start_memory_growth": round(max(memory[1:]) / memory[0], 3),
        "far_start": round(far["first_step_s"] / large["first_step_s"], 3),
    }


def say(what: str, found: dict[str, Any]) -> None:
    print(
        f"{what}: first step after {found['first_step_s']:.1f} s, driver {found['driver_gb']:.2f} GB, "
        f"worker {found['worker_gb']:.2f} GB",
        flush=True,
    )


def measure(work: Path, out: Path, config: dict[str, Any], resources: dict[str, Any]) -> dict[str, Any]:
    what = {"work": str(work), "out": str(out), "config": config, "resources": resources}
    return last_line(
        [sys.executable, "-m", "tests.benchmarks.scale", "--do", json.dumps(what)], os.environ | CPU_ENVIRONMENT
    )


def run_stage(work: str, out: str, config: dict[str, Any], resources: dict[str, Any]) -> dict[str, Any]:
    from pipeline.cluster.connection import connected
    from pipeline.recipe.sections import Cluster
    from stages.artifacts import PreferencePairs, ReferenceLogprobs
    from stages.train.config import TrainConfig, TrainResources

    with connected(Cluster(), verbose=False):
        from stages.train.run import train

        log, began, first = Path(out) / "metrics.jsonl", time.perf_counter(), Event()
        seen: list[float] = []
        before = steps_of(log)

        def look() -> None:
            while not first.wait(0.01):
                if any(line["step"] not in before for line in read(log) if line["step"]):
                    seen.append(time.perf_counter() - began)
                    return

        looking = Thread(target=look)
        looking.start()
        train(
            TrainConfig(starts_at_reference=False, lr=1e-5, **config),
            pairs=PreferencePairs(Path(work) / "pairs"),
            logprobs=ReferenceLogprobs(Path(work) / "logprobs"),
            out=Path(out),
            resources=TrainResources(**resources),
        )
        first.set()
        looking.join()
    lines = [line for line in read(log) if line["step"] not in before and line["step"]]
    return {
        "first_step_s": seen[0],
        "step_seconds": [line["step_seconds"] for line in lines],
        "driver_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "worker_gb": max(line["peak_memory_gb"] for line in lines),
    }


def read(log: Path) -> list[dict[str, Any]]:
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def steps_of(log: Path) -> set[int]:
    return {line["step"] for line in read(log)}


def move_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """What was saved after the third step, as if it had been step 50,000 of a longer run."""
    saved = folder / "step-00000003"
    meta = json.loads((saved / "meta.json").read_text())
    meta["step"] = FAR
    meta["identity"]["config"] |= config
    (saved / "meta.json").write_text(json.dumps(meta))
    saved.rename(folder / f"step-{FAR:08d}")


if __name__ == "__main__":
    main()
