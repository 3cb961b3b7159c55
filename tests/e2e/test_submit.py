"""Stages as jobs of a Ray cluster: sent once, after each other, with what they need, and told of."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
import ray
import requests
import yaml
from conftest import ROOT, Project, make_project

from pipeline.cluster import jobs
from pipeline.cluster.luggage import MOST
from pipeline.recipe.load import load
from stages.errors import RecipeError


class Starting(BaseHTTPRequestHandler):
    """What stands before a dashboard and has faults, as a cluster that is starting: once at each kind of question, and
    once more after a job has been taken.
    """

    dashboard: str
    asked: ClassVar[Counter] = Counter()

    def answer(self) -> None:
        kind = f"{self.command} {self.path[:10]}"
        self.asked[kind] += 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, content = 500, b"No available agent to submit job"
        if self.asked[kind] > 1:
            headers = {"Content-Type": self.headers.get("Content-Type", "")}
            answer = requests.request(self.command, self.dashboard + self.path, data=body, headers=headers)
            if kind != "POST /api/jobs/" or self.asked[kind] > 2:
                status, content = answer.status_code, answer.content
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, ray_cluster: str) -> Iterator[Project]:
    """Its cluster file names a dashboard with faults; its recipe a source and a judge that only its folder has."""
    Starting.dashboard = f"http://{ray._private.worker.global_worker.node.webui_url}"  # of ray_cluster
    Starting.asked.clear()
    project = make_project(tmp_path, tiny_model)
    with ThreadingHTTPServer(("127.0.0.1", 0), Starting) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        where = {
            "address": ray_cluster,
            "dashboard": f"http://127.0.0.1:{server.server_port}",
            "python": sys.executable,
        }
        project.cluster.write_text(yaml.safe_dump(yaml.safe_load(project.cluster.read_text()) | where))
        what = yaml.safe_load(project.recipe.read_text())
        (tmp_path / "sets").mkdir()
        (tmp_path / "triples.jsonl").rename(tmp_path / "sets" / "triples.jsonl")
        what["shard"]["source"] = "sets/triples.jsonl"
        project.recipe.write_text(yaml.safe_dump(what))
        yield project
        server.shutdown()


def raydpo(project: Project, command: str, *options: str) -> subprocess.CompletedProcess:
    arguments = [sys.executable, "-m", "pipeline", command, "recipe.yaml", "--cluster", "cluster.yaml", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        arguments, cwd=project.folder, capture_output=True, text=True, timeout=300, env=environment
    )  # fmt: skip


def test_stages_are_jobs_one_after_the_other(project: Project) -> None:
    where = load(project.recipe, project.cluster, ["cluster.dashboard_seconds=0"])[1]
    with pytest.raises(RecipeError, match="takes no job: 500 "):
        jobs.submit(where, [], project.folder)
    sent = raydpo(project, "submit", "--follow")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    states = json.loads(raydpo(project, "status", "--json").stdout)
    assert [(row["stage"], row["state"], row["job"]) for row in states] == [
        (stage, "hit", "SUCCEEDED") for stage in ("shard", "score", "train")
    ]
    ids = [row["id"] for row in states]
    assert sent.stdout.splitlines()[:3] == ids
    assert all(row["id"].startswith(f"{row['stage']}-") for row in states)
    # Of the first two answers one was a fault, and one was lost: the job that had been taken is not sent again.
    assert Starting.asked["POST /api/jobs/"] == len(ids) + 1
    assert "no job of this recipe lives" in raydpo(project, "cancel").stdout


def test_a_stage_does_not_start_after_one_that_failed(project: Project) -> None:
    """And its exit code is that of the stage that failed."""
    (project.folder / "sets" / "triples.jsonl").write_text("")
    empty = raydpo(project, "submit", "--follow")
    assert empty.returncode == 2, empty.stdout + empty.stderr
    shard, score, train = json.loads(raydpo(project, "status", "--json").stdout)
    assert shard["job"] == "FAILED"
    where = load(project.recipe, project.cluster, [])[1]
    told: list[str] = []
    assert jobs.follow(where, train["id"], told.append) == 2, "".join(told)
    assert f"{score['id']} is FAILED, and this stage needs what it makes" in " ".join("".join(told).split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cluster.root": "runs"}, "cluster.root runs is relative: in a job that is a folder which ends with the job"),
        ({"shard.source": "../above.jsonl"}, "../above.jsonl lies outside of"),
        ({"shard.source": "large.jsonl"}, "the largest, large.jsonl, 268 MB; at most 268 MB travel with a job"),
        ({"shard.source": "pipeline/cli.py"}, "pipeline/cli.py: in a job another file of this name is there"),
    ],
)
def test_what_cannot_travel_is_refused_by_name(project: Project, change: dict[str, str], message: str) -> None:
    inner = project.folder / "inner"
    inner.mkdir()
    (project.folder / "sets" / "triples.jsonl").rename(project.folder / "above.jsonl")
    for name in ("recipe.yaml", "cluster.yaml"):
        (project.folder / name).rename(inner / name)
    (inner / "pipeline").mkdir()
    (inner / "pipeline" / "cli.py").write_text("{}")
    (inner / "sets").mkdir()
    (inner / "sets" / "triples.jsonl").write_text("{}")
    with (inner / "large.jsonl").open("w") as large:
        large.truncate(MOST + 1)
    options = [word for key, value in change.items() for word in ("--set", f"{key}={value}")]
    sent = raydpo(Project(inner), "submit", *options)
    assert sent.returncode == 2
    assert message in sent.stderr
    assert "Traceback" not in sent.stderr


def test_what_lies_beside_the_code_is_sent_to_nobody(tmp_path: Path, ray_cluster: str) -> None:
    for part in ("pipeline", "stages"):
        (tmp_path / part).symlink_to(ROOT / part)
    with (tmp_path / "weights.bin").open("w") as large:
        large.truncate(600 * 2**20)  # more than Ray takes
    code = f"""if True:
        import os, ray
        from pipeline.cluster.connection import connected
        from pipeline.recipe.sections import Cluster
        with connected(Cluster(address="{ray_cluster}"), verbose=False):
            print(sorted(ray.get(ray.remote(lambda: os.listdir(".")).remote())))
    """
    started = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    assert started.stdout.splitlines()[-1] == "['pipeline', 'stages']"
