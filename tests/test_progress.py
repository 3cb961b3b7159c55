"""Progress in a job's log, and what is said at Ctrl-C."""

import io
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT, Project
from rich.console import Console

from pipeline.view.following.lines import Lines, duration, is_for_lines
from pipeline.view.following.terminal import bars


def test_a_log_gets_a_line_every_so_often() -> None:
    now, file = [0.0], io.StringIO()
    told = Lines(Console(file=file), "train", (), lambda figures: f"loss {figures['loss']}", 30, lambda: now[0])
    told.start(100, 20, "steps")
    now[0] += 60  # a model loads
    for step in range(21, 101):
        now[0] += 2
        told.advance(step, loss=round(1 / step, 3))
    told.notice("[bold] is a text")
    assert file.getvalue().splitlines() == [
        "train: 20 of 100 steps",
        "train: 21 of 100 steps, in 62 s; loss 0.048",
        "train: 36 of 100 steps, in 92 s, about 2.1 min left; loss 0.028",
        "train: 51 of 100 steps, in 2 min, about 98 s left; loss 0.02",
        "train: 66 of 100 steps, in 2.5 min, about 68 s left; loss 0.015",
        "train: 81 of 100 steps, in 3 min, about 38 s left; loss 0.012",
        "train: 96 of 100 steps, in 3.5 min, about 8 s left; loss 0.01",
        "train: 100 of 100 steps, in 3.7 min; loss 0.01",
        "Warning: [bold] is a text",
    ]


def test_durations_have_two_digits() -> None:
    given = (0.4, 59, 119, 120, 3600, 7100, 7200, 90000, 200000)
    assert [duration(each) for each in given] == [
        "0 s", "59 s", "119 s", "2 min", "60 min", "118 min", "2 h", "25 h", "2.3 d",
    ]  # fmt: skip


def test_lines_are_for_what_is_no_terminal() -> None:
    file = io.StringIO()
    with bars(Console(file=file)) as draw, draw("shard") as progress:
        progress.start(3, 0, "parts")
        progress.advance(3)
    assert file.getvalue().splitlines()[0] == "shard: 0 of 3 parts"
    assert not is_for_lines(Console(file=file, force_terminal=True, _environ={"TERM": "xterm"}))
    assert is_for_lines(Console(file=file, force_terminal=True, _environ={"TERM": "dumb"}))


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(trained: Project, tmp_path: Path, ray_cluster: str) -> None:
    shutil.copytree(trained.folder / "runs", tmp_path / "runs")
    where: dict[str, Any] = {"root": str(tmp_path / "runs"), "address": ray_cluster, "train": {"checkpoint_steps": 1}}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(where))
    project = Project(tmp_path, trained.recipe)
    overrides = ("train.max_steps=100000", "train.epochs=100000")
    words = ["run", trained.recipe, "--cluster", tmp_path / "cluster.yaml", *(f"--set={each}" for each in overrides)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *map(str, words)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    made, deadline = project.plan(*overrides)["train"].folder / "checkpoints", time.monotonic() + 90
    while not list(made.glob("step-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "train: 0 of 100000 steps" in said
    assert "Stopped. Kept: shard, finished; score, finished; train, a checkpoint of step " in said
    assert f"The same command goes on: raydpo run {trained.recipe} --cluster" in said
    assert "\x1b" not in said
    assert "\r" not in said
