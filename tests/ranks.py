"""Training ranks as plain processes with gloo between them: all of Ray Train's workers but Ray. They can be killed."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.train.config import TrainConfig, TrainResources
from stages.train.job import Job
from stages.train.worker import Worker

_processes = get_context("forkserver")
_processes.set_forkserver_preload(["stages.train.worker", "transformers.models.llama.modeling_llama", "ranks"])


def train_on(job: Job, world: int, kill_after: int | None = None) -> None:
    """Train with `world` ranks; they are killed once step `kill_after` has ended, or work until their end."""
    ranks = _started(world, _train, job)
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


def together(world: int, work: Callable[..., None], *arguments: Any) -> None:
    """`work(*arguments)` by all ranks of a process group, to its end."""
    ranks = _started(world, work, *arguments)
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * world


def _started(world: int, work: Callable[..., None], *arguments: Any) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [_processes.Process(target=_rank, args=(rank, world, port, work, arguments)) for rank in range(world)]
    for process in ranks:
        process.start()
    return ranks


def _rank(rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    work(*arguments)
    dist.destroy_process_group()


def _train(job: Job) -> None:
    job.out.mkdir(parents=True, exist_ok=True)
    Worker(job).run()


def metrics_of(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def last_step(out: Path) -> int:
    return max((line["step"] for line in metrics_of(out)), default=-1)


def figures(out: Path, names: Sequence[str]) -> list[tuple[Any, ...]]:
    return [tuple(line.get(name) for name in names) for line in metrics_of(out)]


def check_undisturbed(trained: Path, config: TrainConfig, pairs: Path, logprobs: Path, scratch: Path) -> None:
    """The training at `trained` has ended as one of a single rank to which nothing happened."""
    job = Job(config, TrainResources(), PreferencePairs(pairs), ReferenceLogprobs(logprobs), scratch, 128)
    train_on(job, world=1)
    assert figures(trained, ("step", "batch")) == figures(job.out, ("step", "batch"))
    expected = weights(job.out)
    for name, weight in weights(trained).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "policy" / "model.safetensors")
