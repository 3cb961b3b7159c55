"""Training that loses workers, its driver and its nodes, in real processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Project, actors_of, make_project, slowed, wait_until
from ranks import check_undisturbed, last_step
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

pytestmark = pytest.mark.nodes


def make(folder: Path, model: Path, trained: Project, address: str, steps: int, **resources: object) -> Project:
    """A project that wants `steps` small steps on the cluster at `address`, and has what they need from `trained`."""
    project = make_project(folder, model)
    for stage, step in trained.plan().items():
        if stage != "train":
            shutil.copytree(step.folder, folder / step.folder.relative_to(trained.folder))
    recipe = yaml.safe_load(project.recipe.read_text())
    recipe["train"] |= {"max_steps": steps, "epochs": 9999}
    project.recipe.write_text(yaml.safe_dump(recipe))
    cluster = {"root": str(folder / "runs"), "address": address, "train": resources}
    project.cluster.write_text(yaml.safe_dump(cluster))
    return project


def start(project: Project, said: Path) -> subprocess.Popen:
    arguments = ["run", str(project.recipe), "--cluster", str(project.cluster), "--only", "train"]
    # How long Ray waits for a place on a node of whose death it has not heard yet, and how often it asks for notices.
    env = os.environ | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}
    env |= {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1"}
    with said.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT
        )


def workers_of(cluster: str) -> list[int]:
    return actors_of(cluster, "RayTrainWorker")


def test_a_stall_a_dead_worker_and_a_dead_driver(
    tmp_path: Path, tiny_model: Path, trained: Project, ray_cluster: str
) -> None:
    project = make(
        tmp_path, tiny_model, trained, ray_cluster, 60, workers=2, checkpoint_steps=5, stall_seconds=2, restarts=1
    )
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
    check(project, tmp_path / "undisturbed")
    happened = [event["what"] for event in step.manifest.facts["happened"]]
    assert "stood still" in happened
    assert happened.count("begun again") == 2


def check(project: Project, scratch: Path) -> None:
    steps = project.plan()
    train, shard, score = (steps[name] for name in ("train", "shard", "score"))
    check_undisturbed(train.folder, train.config, shard.folder, score.folder, scratch)


def give_notice(node: Any, cluster: str) -> None:
    """As a cloud does before it takes a spot machine away."""
    reason, deadline = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), 1000 * int(time.time() + 60)
    assert GcsClient(address=cluster).drain_node(node.node_id, reason, "spot", deadline)[0]


def checkpoints_of(folder: Path) -> list[str]:
    return [path.parent.name for path in folder.glob("checkpoints/step-*/meta.json")]


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A cluster whose head has no room for workers."""
    # It takes a node for dead sooner than after Ray's 15 seconds.
    config = {"health_check_period_ms": 500, "health_check_initial_delay_ms": 1000}
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0, "_system_config": config}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def test_a_node_goes_after_notice_and_another_comes(
    tmp_path: Path, tiny_model: Path, trained: Project, nodes: Cluster
) -> None:
    lost, _ = (nodes.add_node(num_cpus=1) for _ in range(2))
    elastic = {"min": 1, "max": 2}
    project = make(tmp_path, tiny_model, trained, nodes.address, 150, workers=elastic, resize_seconds=1, restarts=1)
    step, said = project.plan()["train"], tmp_path / "said.txt"
    driver = start(project, said)
    wait_until(lambda: last_step(step.folder) >= 7, driver, said)
    both = workers_of(nodes.address)
    assert len(both) == 2
    with slowed(both):
        give_notice(lost, nodes.address)
        wait_until(lambda: checkpoints_of(step.folder), driver, said)
    assert len(checkpoints_of(step.folder)) == 1  # no other is due: it goes on from here
    nodes.remove_node(lost, allow_graceful=False)
    wait_until(lambda: len(workers_of(nodes.address)) == 1, driver, said)
    seen = last_step(step.folder)
    wait_until(lambda: last_step(step.folder) >= seen + 6, driver, said)
    with slowed(workers_of(nodes.address)):
        nodes.add_node(num_cpus=1)
        wait_until(lambda: len(workers_of(nodes.address)) == 2, driver, said)
    assert driver.wait(timeout=300) == 0, said.read_text()
    check(project, tmp_path / "undisturbed")
    happened = [event["what"] for event in step.manifest.facts["happened"]]
    assert happened.count("begun again") == 2
