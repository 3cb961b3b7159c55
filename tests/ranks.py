"""Training ranks as plain processes with gloo between them: all of Ray Train's workers but Ray. They can be killed."""

import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from stages.train.job import Job
from stages.train.worker import Worker

_processes = get_context("forkserver")
_processes.set_forkserver_preload(["stages.train.worker", "transformers.models.llama.modeling_llama", "ranks"])


def train_on(job: Job, world: int, kill_after: int | None = None) -> None:
    """Train with `world` ranks; they are killed once step `kill_after` has ended, or work until their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job.out.mkdir(parents=True, exist_ok=True)
    ranks = [_processes.Process(target=_rank, args=(job, rank, world, port)) for rank in range(world)]
    for process in ranks:
        process.start()
    if kill_after is not None:
        while last_step(job.out) < kill_after:
            assert all(process.exitcode is None for process in ranks), "the ranks ended before they could be killed"
            time.sleep(0.002)
        for process in ranks:
            os.kill(process.pid, signal.SIGKILL)
    for process in ranks:
        process.join()
    if kill_after is None:
        assert [process.exitcode for process in ranks] == [0] * world


def _rank(job: Job, rank: int, world: int, port: int) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    Worker(job).run()
    dist.destroy_process_group()


def metrics_of(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def last_step(out: Path) -> int:
    return max((line["step"] for line in metrics_of(out)), default=-1)


def figures(out: Path, names: Sequence[str]) -> list[tuple[Any, ...]]:
    return [tuple(line.get(name) for name in names) for line in metrics_of(out)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "policy" / "model.safetensors")
