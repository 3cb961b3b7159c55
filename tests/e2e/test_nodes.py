"""The whole pipeline by `raydpo submit` on a cluster of several nodes and object storage, while both fail."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
import yaml
from bucket import BUCKET, make_bucket
from conftest import ROOT, Project, make_project, slowed, wait_until
from moto.server import DomainDispatcherApplication, create_backend_app
from nodes import HOST, Nodes, nodes
from ranks import check_undisturbed, last_step
from werkzeug.serving import make_server

from pipeline.plan import State, Step
from pipeline.store import Store
from stages.artifacts import PreferencePairs

pytestmark = pytest.mark.nodes
patiently = partial(wait_until, seconds=180)  # a node takes a while to start, or to be missed


class Storage:
    """A real S3 server. While it `ails`, it is slow, and answers 500 to every second request."""

    def __init__(self) -> None:
        self.ails = False
        self.asked = self.failed = 0
        self._app = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not self.ails:
            return self._app(environ, start_response)
        time.sleep(0.05)
        self.asked += 1
        if self.asked % 2:
            return self._app(environ, start_response)
        self.failed += 1
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
        start_response(
            "500 Internal Server Error", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    made = Storage()
    server = make_server("0.0.0.0", 0, made, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    make_bucket(monkeypatch, server.server_port, "a secret of tests")
    yield made
    server.shutdown()


@pytest.fixture
def cluster(storage: Storage) -> Iterator[Nodes]:  # noqa: ARG001, its address is in the environment
    port = os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]
    environment = {
        "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
        "GLOO_SOCKET_IFNAME": "eth0",  # where ranks meet; gloo would look the node's name up
        "RAY_health_check_period_ms": "500",  # a node is taken for dead sooner than after Ray's 15 seconds
        "RAY_health_check_initial_delay_ms": "2000",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_AUTH_MODE": "disabled",  # or it depends on whether this machine has a token
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    }
    folder = Path(tempfile.mkdtemp(prefix="n"))  # its name is short, as those of sockets have to be
    with nodes(folder, environment) as made:
        made.add(1)
        made.add(1)
        yield made


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, cluster: Nodes) -> Project:
    """24 parts on two actors, then 60 steps of two workers; triples and artifacts in object storage."""
    project = make_project(tmp_path, tiny_model, num_triples=240)
    boto3.client("s3").upload_file(str(tmp_path / "triples.jsonl"), BUCKET, "triples.jsonl")
    what = yaml.safe_load(project.recipe.read_text())
    what["shard"] |= {"source": f"s3://{BUCKET}/triples.jsonl", "num_parts": 24}
    what["train"] |= {"max_steps": 60, "epochs": 9999}
    project.recipe.write_text(yaml.safe_dump(what))
    work = {"kind": "work"}  # the nodes beside the head
    where = {
        "root": f"s3://{BUCKET}/team",
        "work": str(tmp_path / "work"),
        "address": cluster.address,
        "dashboard": cluster.dashboard,
        "python": sys.executable,
        "score": {"actors": {"min": 1, "max": 2}, "max_tokens_per_batch": 1, "labels": work},
        "train": {"workers": 2, "checkpoint_steps": 5, "restarts": 2, "labels": work},
    }
    project.cluster.write_text(yaml.safe_dump(where))
    return project


def raydpo(command: str, project: Project, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "pipeline", command, str(project.recipe), "--cluster", str(project.cluster)),
        *options,
    ]


def drafts(project: Project, steps: dict[str, Step]) -> dict[str, Path]:
    work = Path(yaml.safe_load(project.cluster.read_text())["work"])
    return {name: work / name / step.fingerprint[:12] for name, step in steps.items()}


def parts_in(folder: Path) -> int:
    return len(list(folder.glob("part-*.parquet")))


def test_nodes_and_storage_fail_and_the_results_are_those_of_an_undisturbed_run(
    project: Project, cluster: Nodes, storage: Storage, tmp_path: Path, ray_cluster: str
) -> None:
    steps, said = project.plan(), tmp_path / "said.txt"
    draft = drafts(project, steps)
    lost, other = list(cluster.living)[1:]
    planned = subprocess.run(raydpo("plan", project, "--live"), cwd=ROOT, capture_output=True, text=True, check=True)
    assert "cluster.train.workers is 2, each with 1 CPUs on nodes with kind=work: there is room for 2" in planned.stdout
    with said.open("w") as log:
        sent = subprocess.Popen(raydpo("submit", project, "--follow"), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    patiently(lambda: parts_in(draft["score"]) >= 3, sent, said)
    storage.ails = True
    cluster.lose(lost)
    cluster.add(1)
    patiently(lambda: "score │ done" in said.read_text(), sent, said)
    storage.ails = False
    patiently(lambda: last_step(draft["train"]) >= 1, sent, said)
    with slowed(cluster.actors("RayTrainWorker")):
        patiently(lambda: last_step(draft["train"]) >= 7, sent, said)
        cluster.lose(other)
    cluster.add(1)
    assert sent.wait(300) == 0, said.read_text()
    assert "a secret of tests" not in said.read_text()
    assert storage.failed > 20

    ended = project.plan()
    assert {step.state for step in ended.values()} == {State.HIT}
    assert not any(folder.exists() for folder in draft.values())
    assert "begun again" in [event["what"] for event in ended["train"].manifest.facts["happened"]]
    store = Store.open(f"s3://{BUCKET}/team", str(tmp_path / "work"))
    there = {name: store.on_disk(step.folder) for name, step in ended.items()}
    ids = [pair_id for part in PreferencePairs(there["shard"]).parts for pair_id in of(there["score"] / part)]
    assert len(ids) == len(set(ids)) == ended["shard"].manifest.facts["pairs"] == 240

    project.cluster.write_text(yaml.safe_dump({"root": str(tmp_path / "undisturbed"), "address": ray_cluster}))
    undisturbed = project.run(stages=["shard", "score"])
    for name, done in undisturbed.items():
        assert done.step.manifest.files == ended[name].manifest.files
    made = [undisturbed[name].step.folder for name in ("shard", "score")]
    check_undisturbed(there["train"], ended["train"].config, *made, tmp_path / "alone")


def of(part: Path) -> list[str]:
    found: list[str] = pq.read_table(part, columns=["pair_id"])["pair_id"].to_pylist()
    return found


def test_of_two_drivers_on_two_nodes_one_makes_it_and_a_dead_one_frees_it(
    project: Project, cluster: Nodes, tmp_path: Path
) -> None:
    root = f"cluster.root={tmp_path / 'runs'}"
    subprocess.run(
        raydpo("run", project, "--only", "shard", "--set", root, "--set", "cluster.address=local"), cwd=ROOT, check=True
    )
    folder = project.plan(root)["score"].folder
    command = [*raydpo("run", project, "--only", "score", "--set", root), "--set", "cluster.score.actors=1"]
    first, second = list(cluster.living)[1:]
    said = {node: tmp_path / f"{node}.txt" for node in (first, second)}

    def start(node: str) -> subprocess.Popen:
        with said[node].open("w") as log:
            return cluster.popen(node, command, stdout=log, stderr=subprocess.STDOUT)

    makes = start(first)
    patiently(lambda: parts_in(folder) >= 1, makes, said[first])
    with slowed(cluster.actors("PartScorer")):
        waits = start(second)
        patiently(lambda: "is being made by process" in said[second].read_text(), waits, said[second])
        assert f"on {first} since" in " ".join(said[second].read_text().split())
        assert makes.poll() is None, said[first].read_text()
        cluster.lose(first)
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}
    assert 0 < len(finished) < 24
    assert waits.wait(300) == 0, said[second].read_text()
    step = project.plan(root)["score"]
    assert (step.state, step.manifest.facts["pairs"]) == (State.HIT, 240)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
