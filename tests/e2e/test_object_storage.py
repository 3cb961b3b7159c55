"""Triples, models and artifacts in object storage: a real S3 server on this machine."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from bucket import BUCKET, make_bucket
from conftest import ROOT, Project, make_project
from moto.server import ThreadedMotoServer

from pipeline.fingerprint import fingerprint
from pipeline.identity import Digests, source_identity
from pipeline.plan import Step, plan
from pipeline.recipe.load import load
from pipeline.store import Store
from stages.artifacts import Manifest, PolicyCheckpoint
from stages.errors import ContractError, RecipeError
from stages.shard.config import ShardConfig
from stages.shard.reading.survey import sample
from stages.storage import folders, named
from stages.storage.place import place


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of who uses it."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield make_bucket(monkeypatch, server.get_host_and_port()[1], "tests", AWS_MAX_ATTEMPTS="1")
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


def put(name: str, data: bytes) -> str:
    boto3.client("s3").put_object(Bucket=BUCKET, Key=name, Body=data)
    return f"s3://{BUCKET}/{name}"


def test_triples_models_and_artifacts_may_lie_in_object_storage(
    s3: dict[str, str],
    trained: Project,
    tiny_model: Path,
    ray_cluster: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One run of all three stages, whose workers have the environment that the cluster file gives."""
    products = named.copies().with_name("products")  # which library is the faster one, as the other run found it
    cache, work, root = tmp_path / "cache", tmp_path / "work", f"s3://{BUCKET}/team"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    project = make_project(tmp_path, tiny_model)
    content = yaml.safe_load(project.recipe.read_text())
    triples = (tmp_path / "triples.jsonl").read_bytes()
    content["shard"]["source"] = put("pairs/triples.jsonl.gz", gzip.compress(triples))
    for file in tiny_model.iterdir():
        put(f"models/tiny/{file.name}", file.read_bytes())
    content["model"] = f"s3://{BUCKET}/models/tiny"
    project.recipe.write_text(yaml.safe_dump(content))
    environment = s3 | {"XDG_CACHE_HOME": str(cache)}
    cluster = {"root": root, "work": str(work), "env_vars": environment, "address": ray_cluster}
    project.cluster.write_text(yaml.safe_dump(cluster))

    store = Store.open(root, str(work))
    before = steps_of(project, store)
    assert {step.state for step in before.values()} == {"miss"}
    assert not cache.exists()  # a plan fetches nothing
    assert before["shard"].fingerprint == steps_of(project, store)["shard"].fingerprint
    shutil.copytree(
        products, cache / "raydpo" / "products"
    )  # measured anew it may be the other, which rounds otherwise
    raydpo(project)
    steps, expected = steps_of(project, store), trained.plan()
    assert {step.state for step in steps.values()} == {"hit"}
    parts = [
        [file for file in each["shard"].manifest.files if file.name.startswith("part")] for each in (steps, expected)
    ]
    assert [file.rows for file in parts[0]] == [file.rows for file in parts[1]]
    assert steps["score"].manifest.files == expected["score"].manifest.files
    weights = [
        next(file for file in each["train"].manifest.files if file.name == "policy/model.safetensors")
        for each in (steps, expected)
    ]
    assert weights[0] == weights[1]
    for step in steps.values():
        assert not store.draft(step.stage.name, step.fingerprint).exists()
    tokenizers = [folder for folder in cache.glob("raydpo/objects/*/") if (folder / "tokenizer.json").exists()]
    assert sorted((folder / "model.safetensors").exists() for folder in tokenizers) == [False, True]
    copy = store.on_disk(PolicyCheckpoint(steps["train"].folder).policy)
    assert folders.sizes(copy) == folders.sizes(PolicyCheckpoint(expected["train"].folder).policy)

    lost = next(key for key in objects() if "/score/" in key and key.endswith("part-00002.parquet"))
    boto3.client("s3").delete_object(Bucket=BUCKET, Key=lost)
    partial = steps_of(project, store)["score"]
    assert (partial.state, partial.why) == ("partial", "part-00002.parquet is missing")
    raydpo(project, "--only", "score")
    assert steps_of(project, store)["score"].manifest.files == expected["score"].manifest.files

    put("pairs/triples.jsonl.gz", gzip.compress(triples * 2))
    assert steps_of(project, store)["shard"].state == "miss"
    with pytest.raises(RecipeError, match=r"triples\.jsonl\.gz has changed since this run was planned\. Run again"):
        named.entries(before["shard"].config.source)


@pytest.mark.usefixtures("s3")
def test_of_runs_that_share_no_work_the_sooner_one_has_made_it(tmp_path: Path) -> None:
    payload: dict[str, Any] = {"stage": "judge", "config": {}, "inputs": {}}
    name, root = fingerprint(payload), f"s3://{BUCKET}/shared"

    def made(who: str, content: str) -> Manifest:
        store = Store.open(root, str(tmp_path / who))
        (store.begin("judge", name, payload, {}) / "part").write_text(content)
        return store.commit("judge", name, payload, {}, 1.0, {"who": who})

    first = made("one", "abc")
    key = f"shared/judge/{name[:12]}/part"
    manifest = boto3.client("s3").get_object(Bucket=BUCKET, Key=key.replace("part", "manifest.json"))["Body"].read()
    draft = Store.open(root, str(tmp_path / "other")).draft("judge", name)
    draft.mkdir(parents=True)
    for content in ("abc", "xyz"):
        (draft / "part").write_text(content)
        (draft / "manifest.json").write_text("another one")
        assert not folders.upload(draft, Store.open(root, str(tmp_path)).folder("judge", name), "manifest.json")
        there = [each for each in objects() if each.startswith("shared/")]
        assert there == [key.replace("part", "manifest.json"), key]  # nothing was sent

    put(key, b"xyz")  # by one who was slower
    store = Store.open(root, str(tmp_path / "other"))
    with pytest.raises(ContractError, match=r"files of both are mixed: part .*raydpo rm judge/"):
        store.commit("judge", name, payload, {}, 1.0, {"who": "other"})
    assert (draft / "part").read_text() == "xyz"
    put(key, b"abc")
    assert store.commit("judge", name, payload, {}, 1.0, {"who": "other"}) == first
    assert not draft.exists()
    assert (
        manifest
        == boto3.client("s3").get_object(Bucket=BUCKET, Key=key.replace("part", "manifest.json"))["Body"].read()
    )


@pytest.mark.usefixtures("s3")
def test_an_end_is_put_where_nothing_is() -> None:
    system = place(f"s3://{BUCKET}").fs
    assert folders._created(system, f"{BUCKET}/end", b"one")
    assert not folders._created(system, f"{BUCKET}/end", b"other")
    assert system.cat_file(f"{BUCKET}/end") == b"one"


@pytest.mark.usefixtures("s3")
def test_folders_and_patterns_in_object_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for i, name in enumerate(("data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001")):
        put(f"set/{name}.jsonl", b"".join(b'{"prompt": "%d"}\n' % j for j in range(i * 3, i * 3 + 3)))
    put("set/README.md", b"about it")

    def read(source: str, split: str = "train") -> list[tuple[str, int, str]]:
        (named,) = ShardConfig(
            source=source_identity(source, Digests(None), "f")[0], tokenizer="t", split=split
        ).all_sources
        return [(name, row, json.loads(text)["prompt"]) for name, row, text in sample(named, 99)]

    first = [("data/train-00000-of-00002.jsonl", i, str(i)) for i in range(3)]
    second = [("data/train-00001-of-00002.jsonl", i, str(i + 3)) for i in range(3)]
    assert read(f"s3://{BUCKET}/set") == read(f"s3://{BUCKET}/set/") == first + second
    assert [text for *_, text in read(f"s3://{BUCKET}/set", "test")] == ["6", "7", "8"]
    assert [text for *_, text in read(f"s3://{BUCKET}/set/data/*-00001-*.jsonl")] == ["3", "4", "5"]
    one = f"s3://{BUCKET}/set/data/test-00000-of-00001.jsonl"
    assert read(one)[0] == ("test-00000-of-00001.jsonl", 0, "6")
    fetched = list(tmp_path.rglob("*.jsonl"))
    assert read(one)[0] == ("test-00000-of-00001.jsonl", 0, "6")
    assert list(tmp_path.rglob("*.jsonl")) == fetched  # once a node


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"s3://{BUCKET}/none.jsonl", "there is nothing at s3://preferences/none.jsonl. Look at the names"),
        ("s3://no-such-bucket/a.jsonl", "s3://no-such-bucket/a.jsonl"),
        (
            "gs://bucket/a.jsonl.zst",
            "gs://bucket/a.jsonl.zst cannot be read: .*install gcsfs.* has to be installed, on all",
        ),
        ("nowhere://bucket/a.jsonl", "nowhere://bucket/a.jsonl cannot be read: .*"),
    ],
)
def test_a_source_that_is_not_there_is_said_before_anything_runs(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        source_identity(name, Digests(None), "shard.source")


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("root", ["s3://no-such-bucket/team", "nowhere://bucket/team"])
def test_a_root_that_cannot_be_written_is_said(root: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"the root {root} cannot be written: .* Look at its name"):
        Store.open(root, str(tmp_path))
    assert not os.listdir(tmp_path)
