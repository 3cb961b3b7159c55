"""Checkpoints are whole or not there, whatever happens while one is written."""

import os
import shutil
import signal
import subprocess
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from stages.errors import ContractError, is_disk_full
from stages.train.policy.checkpoints import Checkpoints

IDENTITY = {"config": {"lr": 1e-3, "seed": 0}, "inputs": {"pairs": "aa"}}


def model_of(value: float, width: int = 8) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer after one step; all weights are `value`."""
    model = nn.Linear(width, width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(1, width)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(value)
    return model, optimizer


def checkpoints(folder: Path, keep: int = 2, identity: dict | None = None) -> Checkpoints:
    return Checkpoints(folder, identity or IDENTITY, keep, trains_all=True)


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


@pytest.mark.usefixtures("alone")
def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    for step, loss in enumerate([0.7, 0.5, None, 0.6, 0.65, None], start=1):
        kept.save(step, *model_of(float(step)), {"note": step}, loss)
    kept.wait()
    assert steps_in(tmp_path) == [2, 5, 6]
    assert kept.latest() == 6
    model, optimizer = model_of(0.0)
    assert kept.load(2, model, optimizer) == {"note": 2}
    assert all((weight == 2.0).all() for weight in model.parameters())
    assert optimizer.state_dict()["state"][0]["step"] == 1


@pytest.mark.usefixtures("alone")
def test_what_is_saved_is_the_moment_of_the_call(tmp_path: Path) -> None:
    kept, (model, optimizer) = checkpoints(tmp_path), model_of(1.0)
    kept.save(1, model, optimizer, {}, None)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(9.0)
    kept.wait()
    kept.load(1, model, optimizer)
    assert all((weight == 1.0).all() for weight in model.parameters())


@pytest.mark.usefixtures("alone")
def test_another_run_s_checkpoint_is_refused_by_what_differs(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    kept.save(3, *model_of(1.0), {}, None)
    kept.wait()
    other = {"config": {"lr": 2e-3, "seed": 0}, "inputs": {"pairs": "bb"}}
    message = r"made by another run: config\.lr 0\.001 -> 0\.002; inputs\.pairs aa -> bb\. Delete .* to start anew"
    with pytest.raises(ContractError, match=message):
        checkpoints(tmp_path, identity=other).load(3, *model_of(0.0))


def save_two(folder: Path) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    kept = checkpoints(folder)
    kept.save(1, *model_of(1.0), {}, None)
    kept.wait()
    kept.save(2, *model_of(2.0, width=5000), {}, None)  # 300 MB with its optimizer
    kept.wait()


def test_killed_while_it_writes_the_one_before_is_whole(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    process = get_context("forkserver").Process(target=save_two, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".step-00000002/*")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(tmp_path.glob(".step-00000002"))
    request.getfixturevalue("alone")
    kept, (model, optimizer) = checkpoints(tmp_path), model_of(0.0)
    assert kept.latest() == 1
    assert not list(tmp_path.glob(".step-*"))  # half of one does not stay
    kept.load(1, model, optimizer)
    assert all((weight == 1.0).all() for weight in model.parameters())


@pytest.mark.usefixtures("alone")
def test_a_full_disk_is_said_and_the_one_before_is_whole(disk: Path) -> None:
    kept = checkpoints(disk)
    kept.save(1, *model_of(1.0), {}, None)
    kept.wait()
    room = shutil.disk_usage(disk).used + 100_000
    subprocess.run(["mount", "-o", f"remount,size={room}", disk], check=True)
    kept.save(2, *model_of(2.0, width=500), {}, None)  # 3 MB
    with pytest.raises(Exception, match="No space left on device") as caught:
        kept.wait()
    assert is_disk_full(caught.value)
    assert kept.latest() == 1
    kept.load(1, *model_of(0.0))
