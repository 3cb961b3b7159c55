"""Training that loses workers, its driver and its nodes, in real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, Project, make_project
from ranks import figures, last_step, train_on
from ray.util.state import list_actors
from safetensors.torch import load_file

from stages.artifacts import PolicyCheckpoint, PreferencePairs, ReferenceLogprobs
from stages.train.config import TrainResources
from stages.train.worker import Job

STEPS = 60


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, ray_cluster: str) -> Project:
    project = make_project(tmp_path, tiny_model)
    recipe = yaml.safe_load(project.recipe.read_text())
    recipe["train"] |= {"max_steps": STEPS, "epochs": 99}
    project.recipe.write_text(yaml.safe_dump(recipe))
    train = {"workers": 2, "checkpoint_steps": 5, "stall_seconds": 2, "restarts": 1}
    cluster = {"root": str(tmp_path / "runs"), "address": ray_cluster, "train": train}
    project.cluster.write_text(yaml.safe_dump(cluster))
    project.run(stages=["shard", "score"])
    return project


def start(project: Project, said: Path) -> subprocess.Popen:
    arguments = ["run", str(project.recipe), "--cluster", str(project.cluster), "--only", "train"]
    with said.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )


def wait_until(true: Callable[[], bool], driver: subprocess.Popen, said: Path) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert driver.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.02)


def workers_of(cluster: str) -> list[int]:
    actors = list_actors(cluster, filters=[("state", "=", "ALIVE")], limit=1000)
    return [actor.pid for actor in actors if "RayTrainWorker" in actor.class_name]


def test_a_stall_a_dead_worker_and_a_dead_driver(project: Project, tmp_path: Path, ray_cluster: str) -> None:
    step, said = project.plan()["train"], tmp_path / "said.txt"
    driver = start(project, said)
    wait_until(lambda: last_step(step.folder) >= 7, driver, said)
    stopped, other = workers_of(ray_cluster)
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: "says nothing: it is stopped" in said.read_text(), driver, said)
    assert "nothing has moved for 2 s" in said.read_text()
    assert "stages/train/worker.py" in said.read_text()  # where the other rank waits
    os.kill(stopped, signal.SIGCONT)
    seen = last_step(step.folder)
    wait_until(lambda: last_step(step.folder) >= seen + 6, driver, said)
    os.kill(other, signal.SIGKILL)
    wait_until(lambda: other not in workers_of(ray_cluster) and len(workers_of(ray_cluster)) == 2, driver, said)
    seen = last_step(step.folder)
    wait_until(lambda: last_step(step.folder) >= seen + 6, driver, said)
    driver.kill()
    driver.wait()
    assert project.plan()["train"].state == "partial"

    driver = start(project, said)
    assert driver.wait(timeout=300) == 0, said.read_text()
    pairs, logprobs = (project.plan()[stage].folder for stage in ("shard", "score"))
    undisturbed = Job(
        step.config,
        TrainResources(),
        PreferencePairs(pairs),
        ReferenceLogprobs(logprobs),
        tmp_path / "undisturbed",
        128,
    )
    train_on(undisturbed, world=2)
    assert figures(step.folder, ("step", "batch")) == figures(undisturbed.out, ("step", "batch"))
    expected = load_file(undisturbed.out / "policy" / "model.safetensors")
    for name, weight in load_file(PolicyCheckpoint(step.folder).policy / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)
