"""raydpo as people run it: processes, exit codes, messages."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Project, make_project
from typer.testing import CliRunner, Result

from pipeline.cli import app
from stages.artifacts import PolicyCheckpoint


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pipeline", *map(str, arguments)]


def raydpo(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300)


def here(*arguments: object) -> Result:
    """In this process: what asks no cluster is the same, and starts sooner."""
    return CliRunner().invoke(app, [*map(str, arguments)])


def options(project: Project) -> tuple[object, ...]:
    return project.recipe, "--cluster", project.cluster


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, ray_cluster: str) -> Project:
    """A fresh project whose cluster file points to the session's Ray cluster."""
    project = make_project(tmp_path, tiny_model)
    cluster = yaml.safe_load(project.cluster.read_text()) | {"address": ray_cluster}
    project.cluster.write_text(yaml.safe_dump(cluster))
    return project


def scalars(events: Path, tag: str) -> dict[int, float]:
    """What TensorBoard draws: records of a length, its check sum, an event, and that one's."""
    from tensorboardX.proto.event_pb2 import Event

    found, content = {}, events.read_bytes()
    while content:
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        for value in event.summary.value:
            if value.tag == tag:
                found[event.step] = value.simple_value
        content = content[16 + length :]
    return found


def test_run_shows_one_table_and_a_second_run_does_nothing(project: Project) -> None:
    first = raydpo("run", *options(project), "--set", "wandb.project=tests", "--set", "tensorboard=true")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "The policy: " in first.stdout
    policy, page = (Path(first.stdout.split(f"The {what}: ")[1].splitlines()[0]) for what in ("policy", "report"))
    assert page.stat().st_size < 3_000_000
    assert (policy / "model.safetensors").exists()
    for noise in ("INFO", "WARNING", "pid="):
        assert noise not in first.stdout + first.stderr
    logs = project.folder / "runs" / "logs"
    assert list(logs.glob("*.log"))
    assert list(logs.glob("wandb/offline-run-*/*.wandb"))  # no key: offline
    (events,) = logs.glob("*/train/events.out.tfevents.*")
    losses = {line["step"]: line["loss"] for line in PolicyCheckpoint(policy.parent).metrics if "loss" in line}
    assert scalars(events, "loss") == pytest.approx(losses)

    began = time.perf_counter()
    second = raydpo("run", *options(project))
    assert second.stdout.count(" hit ") == 3
    assert time.perf_counter() - began < 10

    shown = json.loads(here("show", *options(project), "--json").stdout)
    assert shown["train"]["facts"]["steps"] == 6
    assert shown["score"]["payload"]["inputs"]["pairs"] == shown["shard"]["fingerprint"]
    planned = json.loads(here("plan", *options(project), "--set", "train.loss.beta=0.2", "--json").stdout)
    assert [row["state"] for row in planned] == ["hit", "hit", "miss"]
    assert "train.loss.beta: 0.1 -> 0.2" in planned[2]["why"]

    part = Path(shown["score"]["path"]) / "part-00001.parquet"
    assert here("verify", *options(project)).exit_code == 0
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    verified = here("verify", *options(project))
    assert verified.exit_code == 1
    assert "part-00001.parquet has another content than when it was made. Delete it and run" in verified.stdout
    part.unlink()
    assert raydpo("run", *options(project), "--only", "score").returncode == 0
    assert here("verify", *options(project)).exit_code == 0


def test_a_cluster_that_is_not_named_is_not_joined(ray_cluster: str) -> None:
    code = (
        "import ray\nfrom pipeline.cluster.connection import connected\nfrom pipeline.recipe.sections import Cluster\n"
        "with connected(Cluster(), verbose=False): print(ray.get_runtime_context().gcs_address)"
    )
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert started.stdout.strip() not in ("", ray_cluster)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "shard.source=nowhere.jsonl"], "shard.source: there is no file or folder nowhere.jsonl"),
        (["--set", "train.loss.betta=0.2"], "train.loss.betta: no such key; did you mean beta?"),
        (["--set", "shard.columns.chosen=better"], "has no column 'better'; it has 'prompt', 'chosen', 'rejected'"),
        (["--set", "shard.max_length=512"], "takes at most 256 tokens. Set shard.max_length to 256 or less"),
        (["--only", "grade"], "there is no stage grade; the stages are shard, score, train"),
        (["--set", "cluster.root=/proc/raydpo"], "the root /proc/raydpo cannot be written"),
    ],
)
def test_bad_input_is_one_message(project: Project, arguments: list[str], message: str) -> None:
    result = here("run", *options(project), *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "train"], "train needs PreferencePairs"),
        (["--set", "cluster.address=127.0.0.1:1"], "no Ray cluster answers at cluster.address 127.0.0.1:1"),
    ],
)
def test_what_a_run_itself_finds_is_one_message(project: Project, arguments: list[str], message: str) -> None:
    result = raydpo("run", *options(project), *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_more_workers_than_the_machine_has_is_said_at_once(tmp_path: Path, tiny_model: Path) -> None:
    result = raydpo("run", *options(make_project(tmp_path, tiny_model)), "--set", "cluster.train.workers=999")
    assert result.returncode == 2
    assert "cluster.train.workers is 999, each with 1 CPUs, and this machine has" in result.stderr


def test_missing_recipe_file() -> None:
    result = here("plan", "configs/recipes/nothing.yaml")
    assert result.exit_code == 2
    assert "there is no file configs/recipes/nothing.yaml" in result.stderr


def test_plan_is_light_and_quick(project: Project) -> None:
    """No torch, ray, vllm or transformers for a plan; the time itself is measured by hand, machines are noisy."""
    code = (
        "import sys; from typer.testing import CliRunner; from pipeline.cli import app; "
        f"result = CliRunner().invoke(app, ['plan', {str(project.recipe)!r}, '--cluster', {str(project.cluster)!r}]); "
        "assert result.exit_code == 0, result.output; "
        "print(sorted({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
