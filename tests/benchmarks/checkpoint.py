"""What checkpoints cost training, and what memory the export takes.

Usage: python -m tests.benchmarks.checkpoint [--model ..] [--rounds 2] [--interval 20] [--file-mb 100]

- cost: SmolLM2, fp32, on random pairs of equal length; stretches of --interval steps with a checkpoint at their start
  and without one, in turns; the excess of the medians of a stretch's seconds.
- export: the same model, sharded over two ranks, in files of about --file-mb; the growth of rank 0's resident memory
  while it writes, against the largest file. Then in files of twice that size: the slope is what each further byte of a
  file costs, the rest is the constant.

Each is measured in processes of its own, without Ray.
"""

import argparse
import ctypes
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

from stages.cpu_environment import CPU_ENVIRONMENT
from tests.benchmarks.inputs import MODEL, ROOT, random_pairs
from tests.benchmarks.process import last_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--interval", type=int, default=20)
    parser.add_argument("--file-mb", type=int, default=200)
    parser.add_argument("--do", choices=["cost", "export"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        with tempfile.TemporaryDirectory() as work:
            print(json.dumps({"cost": cost, "export": export}[options.do](options, Path(work))))
        return
    result: dict[str, Any] = {}
    if options.rounds:
        found = measure("cost", options, options.file_mb)
        print(
            f"{options.interval} steps: {found['without']:.1f} s, with a checkpoint {found['with']:.1f} s, "
            f"of which training waits {found['copying']:.2f} s",
            flush=True,
        )
        result["checkpoint_cost"] = round(found["with"] / found["without"] - 1, 4)
    small, large = (measure("export", options, size) for size in (options.file_mb, 2 * options.file_mb))
    for each in (small, large):
        print(f"largest file {each['largest_gb']:.3f} GB, memory grew by {each['grown_gb']:.3f} GB", flush=True)
    slope = (large["grown_gb"] - small["grown_gb"]) / (large["largest_gb"] - small["largest_gb"])
    constant = small["grown_gb"] - slope * small["largest_gb"]
    print(json.dumps(result | {"export_per_file_byte": round(slope, 3), "export_constant_gb": round(constant, 3)}))


def measure(what: str, options: argparse.Namespace, file_mb: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.checkpoint", "--do", what, "--model", str(options.model)]
    command += ["--rounds", str(options.rounds), "--interval", str(options.interval), "--file-mb", str(file_mb)]
    if what == "cost":
        return last_line(command, os.environ | CPU_ENVIRONMENT)
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    with subprocess.Popen(command, env=environment | {"RANK": "1"}, stdout=subprocess.DEVNULL, cwd=ROOT):
        return last_line(command, environment | {"RANK": "0"})


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def make_worker(options: argparse.Namespace, work: Path, pairs: int) -> Any:
    import torch.distributed as dist

    from stages.artifacts import PreferencePairs, ReferenceLogprobs
    from stages.train.config import TrainConfig, TrainResources
    from stages.train.job import Job
    from stages.train.worker import Worker

    random_pairs(work, pairs, tokens=(120, 80, 80), rows_per_part=64)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    config = TrainConfig(policy=str(options.model), starts_at_reference=False, global_batch=8, lr=1e-6)
    inputs = PreferencePairs(work / "pairs"), ReferenceLogprobs(work / "logprobs")
    resources = TrainResources(cpus_per_worker=os.cpu_count(), max_tokens_per_microbatch=1024)
    return Worker(Job(config, resources, *inputs, work / "out", 280))


def cost(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    worker, step = make_worker(options, work, 64), 0
    seconds: dict[str, list[float]] = {"without": [], "with": [], "copying": []}
    for _ in range(3):  # memory is touched for the first time
        step += 1
        worker.trainer.step(step, 10**6)
    worker.save(step, None)
    worker.checkpoints.wait()
    for _ in range(options.rounds):
        for what in ("without", "with"):
            began = time.perf_counter()
            if what == "with":
                worker.save(step, None)
                seconds["copying"].append(time.perf_counter() - began)
            for _ in range(options.interval):
                step += 1
                worker.trainer.step(step, 10**6)
            waited = time.perf_counter()
            worker.checkpoints.wait()
            seconds[what].append(time.perf_counter() - began)
            assert time.perf_counter() - waited < 1, "the checkpoint was not written when the next one was due"
    return {name: statistics.median(values) for name, values in seconds.items()}


def export(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    from stages.train.policy.export import export_policy

    trainer, finished, most = make_worker(options, work, 64).trainer, Event(), [0.0]

    def look() -> None:
        while not finished.wait(0.001):
            most[0] = max(most[0], resident())

    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what loading has left free would hide what the export takes
    looking, before = Thread(target=look), resident()
    looking.start()
    export_policy(work / "policy", trainer.model, trainer.config, file_bytes=options.file_mb * 10**6)
    finished.set()
    looking.join()
    largest = max((path.stat().st_size for path in (work / "policy").glob("*.safetensors")), default=0)  # by rank 0
    return {"largest_gb": largest / 1e9, "grown_gb": (most[0] - before) / 1e9}


def resident() -> float:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
