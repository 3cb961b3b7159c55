"""Scoring with everything going wrong at once, in real processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, Project, actors_of, make_project, slowed

from stages.artifacts import Manifest


def start(project: Project, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipeline", "run", str(project.recipe), "--cluster", str(project.cluster)]
    return subprocess.Popen(
        [*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(driver: subprocess.Popen) -> str:
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    return said


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, ray_cluster: str) -> Project:
    """24 parts on two actors. The tokenizer has one token that the model lacks, and one triple uses it.

    What would say so before (the model beside the tokenizer, the largest id in the manifest) is not there. A part
    has few pairs: the poisonous one is found by a death of the engine for each halving.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens([f"<filler {i}>" for i in range(320 - len(tokenizer))])
    tokenizer.add_tokens(["<poison>"])
    assert tokenizer.convert_tokens_to_ids("<poison>") == 320  # the model has the ids 0 to 319
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    project = make_project(tmp_path, tiny_model, num_triples=56)
    triples = (tmp_path / "triples.jsonl").read_text()
    (tmp_path / "triples.jsonl").write_text(triples.replace("number 47?", "number <poison>?"))
    recipe = yaml.safe_load(project.recipe.read_text())
    recipe["shard"] |= {"num_parts": 24, "tokenizer": str(tmp_path / "tokenizer")}
    recipe["score"]["accept"]["max_rejected_fraction"] = 0.02  # one of 56
    project.recipe.write_text(yaml.safe_dump(recipe))
    score = {"actors": 2, "max_tokens_per_batch": 1, "attempts": 1}
    cluster = {"root": str(tmp_path / "runs"), "address": ray_cluster, "score": score}
    project.cluster.write_text(yaml.safe_dump(cluster))
    return project


def parts_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}


def wait_for(parts: int, folder: Path, driver: subprocess.Popen) -> None:
    while len(parts_of(folder)) < parts:
        assert driver.poll() is None, driver.stdout.read()
        time.sleep(0.01)


@pytest.mark.nodes
def test_exactly_once_whatever_dies(project: Project, ray_cluster: str) -> None:
    (sharded,) = project.run(stages=["shard"]).values()
    made = Manifest.read(sharded.step.folder)
    del made.facts["largest_id"]  # or ids past the vocabulary were refused before any is scored
    made.write(sharded.step.folder)
    folder = project.plan()["score"].folder
    driver = start(project, "--only", "score")
    while len(actors := actors_of(ray_cluster, "PartScorer")) < 2:
        assert driver.poll() is None, driver.stdout.read()
    wait_for(1, folder, driver)
    with slowed(actors):
        wait_for(4, folder, driver)
        os.kill(
            actors_of(ray_cluster, "PartScorer")[0], signal.SIGKILL
        )  # of `actors` the poisonous pair may have had one
        wait_for(10, folder, driver)  # with the engine of the poisonous pair raising somewhere in between
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    finished = parts_of(folder)
    assert 10 <= len(finished) < 24
    assert not (folder / "manifest.json").exists()
    assert project.plan()["score"].state == "partial"

    finish(start(project, "--only", "score"))
    assert {name: parts_of(folder)[name] for name in finished} == finished
    manifest = Manifest.read(folder)
    assert manifest.facts["pairs"] == 56
    (poisonous,) = pq.read_table(folder / "rejects.parquet").to_pylist()
    assert "IndexError" in poisonous["error"]
    errors = pq.read_table(folder / poisonous["part"], columns=["error"])["error"]
    assert len(errors) - errors.null_count == 1

    elsewhere = project.folder / "undisturbed"
    shutil.copytree(project.folder / "runs" / "shard", elsewhere / "shard")
    (undisturbed,) = project.run(f"cluster.root={elsewhere}", "cluster.score.actors=1", stages=["score"]).values()
    assert undisturbed.step.manifest.files == manifest.files


def test_two_runs_of_one_recipe_make_one_artifact(tmp_path: Path, tiny_model: Path, ray_cluster: str) -> None:
    project = make_project(tmp_path, tiny_model, num_triples=80)
    cluster = {"root": str(tmp_path / "runs"), "address": ray_cluster, "score": {"max_tokens_per_batch": 1}}
    project.cluster.write_text(yaml.safe_dump(cluster))
    project.run(stages=["shard"])
    drivers = [start(project, "--only", "score") for _ in range(2)]
    said = [finish(driver) for driver in drivers]
    assert sum("is being made by process" in text for text in said) == 1
    assert sorted(" hit " in text for text in said) == [False, True]
    step = project.plan()["score"]
    assert step.state == "hit"
    assert step.manifest.facts["scored"] == 80


def test_a_full_disk_is_one_message_and_a_rerun_goes_on(
    tmp_path: Path, tiny_model: Path, ray_cluster: str, disk: Path
) -> None:
    project = make_project(tmp_path, tiny_model, num_triples=160)
    project.cluster.write_text(yaml.safe_dump({"root": str(disk), "address": ray_cluster}))
    parts = "shard.num_parts=16"
    project.run(parts, stages=["shard"])
    room = shutil.disk_usage(disk).used + 60_000
    subprocess.run(["mount", "-o", f"remount,size={room}", disk], check=True)
    driver = start(project, "--set", parts, "--only", "score")
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 2, said
    assert "error: the disk is full" in said
    assert "No space left on device" in said
    folder = project.plan(parts)["score"].folder
    finished = parts_of(folder)
    assert 0 < len(finished) < 16

    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
    (done,) = project.run(parts, stages=["score"]).values()
    assert {name: parts_of(folder)[name] for name in finished} == finished
    assert done.step.manifest.facts["scored"] == 160  # of both runs
