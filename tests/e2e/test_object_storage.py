"""Artifacts in object storage: a real S3 server on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import yaml
from conftest import ROOT, Project, make_project
from moto.server import ThreadedMotoServer

from pipeline.plan import Step, plan
from pipeline.recipe.load import load
from pipeline.store import Store
from stages import storage
from stages.artifacts import PolicyCheckpoint
from stages.errors import RecipeError

BUCKET = "preferences"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of who uses it."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    environment |= {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_MAX_ATTEMPTS": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield environment
    server.stop()


def objects() -> list[str]:
    return [each["Key"] for each in boto3.client("s3").list_objects_v2(Bucket=BUCKET).get("Contents", ())]


def raydpo(project: Project, *arguments: str) -> str:
    command = [sys.executable, "-m", "pipeline", "run", str(project.recipe), "--cluster", str(project.cluster)]
    result = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def steps_of(project: Project, store: Store) -> dict[str, Step]:
    return {step.name: step for step in plan(load(project.recipe, project.cluster, [])[0], store)}


def test_artifacts_may_lie_in_object_storage(
    s3: dict[str, str], trained: Project, tiny_model: Path, ray_cluster: str, tmp_path: Path
) -> None:
    project, work = make_project(tmp_path, tiny_model), tmp_path / "work"
    root = f"s3://{BUCKET}/team"
    cluster = {"root": root, "work": str(work), "address": ray_cluster, "env_vars": s3}
    project.cluster.write_text(yaml.safe_dump(cluster))
    raydpo(project)
    assert raydpo(project).count(" hit ") == 3

    store, expected = Store.open(root, str(work)), trained.plan()
    steps = steps_of(project, store)
    assert steps["score"].manifest.files == expected["score"].manifest.files
    weights = [
        next(file for file in each["train"].manifest.files if file.name == "policy/model.safetensors")
        for each in (steps, expected)
    ]
    assert weights[0] == weights[1]
    for step in steps.values():
        assert not store.draft(step.stage.name, step.fingerprint).exists()
    copy = store.on_disk(PolicyCheckpoint(steps["train"].folder).policy)
    assert storage.sizes(copy) == storage.sizes(PolicyCheckpoint(expected["train"].folder).policy)

    lost = next(key for key in objects() if "/score/" in key and key.endswith("part-00002.parquet"))
    boto3.client("s3").delete_object(Bucket=BUCKET, Key=lost)
    partial = steps_of(project, store)["score"]
    assert (partial.state, partial.why) == ("partial", "part-00002.parquet is missing")
    raydpo(project, "--only", "score")
    assert steps_of(project, store)["score"].manifest.files == expected["score"].manifest.files


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("root", ["s3://no-such-bucket/team", "nowhere://bucket/team"])
def test_a_root_that_cannot_be_written_is_said(root: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"the root {root} cannot be written: .* Look at its name"):
        Store.open(root, str(tmp_path))
    assert not os.listdir(tmp_path)
