"""What comes from outside runs nothing, and is written nowhere but in its folder: names, pickles, models' code, YAML.

Mutated manifests, recipes and checkpoints end in what they say or in a message for users, never in another exception.
"""

import contextlib
import json
import os
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import fuzz
import pytest
import torch.distributed.checkpoint as dcp
import yaml
from conftest import ROOT, Project
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_checkpoints import checkpoints, model_of

from pipeline.plan import look_up
from pipeline.recipe.load import load
from pipeline.recipe.reading import parse
from pipeline.store import Store, damage
from stages.artifacts import MANIFEST, Manifest
from stages.digests import written_manifest
from stages.errors import ContractError, MissingArtifact, RecipeError
from stages.judge.function import Function
from stages.logps.reading.loading import load as load_model
from stages.names import inside
from stages.storage import folders, named
from stages.storage.place import place

FOR_USERS = (ContractError, MissingArtifact, RecipeError)
OUT = ["../precious", "/etc/precious", "a/../../precious", "..", "", "a\0b"]


class Runs:
    """A pickle of it makes a file when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


# Names.


@pytest.mark.parametrize("name", OUT)
def test_a_name_that_leads_out_of_its_folder_is_refused(name: str) -> None:
    with pytest.raises(ContractError, match="leads out of its folder"):
        inside(name, "m")
    assert [inside(good, "m") for good in ("a", "a/b..c", "..a/b", ".h")] == ["a", "a/b..c", "..a/b", ".h"]


@pytest.fixture
def project(trained: Project, tmp_path: Path) -> Project:
    """The finished one, in a root of its own, with its pairs and log-probs alone: checkpoints are large."""
    for step in trained.plan().values():
        if step.stage.name != "train":
            shutil.copytree(step.folder, tmp_path / "root" / "runs" / step.stage.name / step.folder.name)
    (tmp_path / "root" / "cluster.yaml").write_text(yaml.safe_dump({"root": str(tmp_path / "root" / "runs")}))
    return Project(tmp_path / "root", trained.recipe)


def resigned(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A manifest changed by one who knows how its last line is made."""
    fields = json.loads((folder / MANIFEST).read_text())
    del fields["sha256"]
    change(fields)
    (folder / MANIFEST).write_bytes(written_manifest(fields))


@pytest.mark.parametrize("name", OUT)
def test_a_manifest_cannot_have_files_outside_of_its_folder_removed(
    project: Project, name: str, tmp_path: Path
) -> None:
    precious = tmp_path / "root" / "runs" / "precious"
    precious.write_text("kept")
    folder = project.plan()["shard"].folder
    record = {"name": name, "bytes": 1, "sha256": "0" * 64, "rows": None}
    resigned(folder, lambda fields: fields["files"].append(record))
    with pytest.raises(ContractError, match="leads out of its folder"):
        project.run(stages=["shard"])
    assert precious.read_text() == "kept"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "../shard"}, r"is of \.\./shard"),
        ({"fingerprint": "../../" + "0" * 58}, r"is of shard \.\./\.\./"),
        ({"payload": {"stage": "shard"}}, "its payload of"),
        ({"files": [{"name": "a", "bytes": "many", "sha256": "", "rows": None}]}, r"files\.0\.bytes"),
        ({"files": 3}, "no manifest: files"),
        ({"facts": None}, "no manifest: facts"),
    ],
)
def test_a_manifest_is_of_its_folder(project: Project, change: dict[str, Any], message: str) -> None:
    resigned(project.plan()["shard"].folder, lambda fields: fields.update(change))
    with pytest.raises(ContractError, match=message):
        project.plan()


def test_a_changed_manifest_is_told_and_others_are_passed_over(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    folder = project.plan()["score"].folder
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"scored": ', '"scored": 1', 1))
    with pytest.raises(ContractError, match="its last line is not its sha256"):
        project.plan()
    assert project.plan("score.dtype=bfloat16")["score"].why == "never made"  # the nearest one cannot be read
    assert "passed over" in caplog.text


def test_keys_of_object_storage_stay_in_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    for key in ("/trust/set/a.jsonl", "/trust/set/../../../precious"):
        system.store[key] = type(system).open and fsspec.implementations.memory.MemoryFile(system, key, b"{}")
    try:
        with pytest.raises(ContractError, match="leads out of its folder"):
            named.fetched("memory://trust/set")
        with pytest.raises(ContractError, match="leads out of its folder"):
            folders.download(place("memory://trust/set"), tmp_path / "to")
    finally:
        system.store.clear()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# Pickles.


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("where", ["metadata", "a value"])
def test_a_checkpoint_runs_nothing(where: str, tmp_path: Path) -> None:
    kept, mark = checkpoints(tmp_path / "kept"), tmp_path / "mark"
    model, optimizer = model_of(1.0)
    kept.save(1, model, optimizer, {}, None)
    kept.wait()
    folder = tmp_path / "kept" / "step-00000001"
    if where == "metadata":
        (folder / ".metadata").write_bytes(pickle.dumps(Runs(mark)))
    else:
        state = kept._state_of(model, optimizer)
        state["optimizer"]["param_groups"][0]["lr"] = Runs(mark)
        dcp.save(state, checkpoint_id=folder)
    with pytest.raises(ContractError, match=r"damaged: .*posix\.mkdir|is no plain data"):
        kept.load(1, *model_of(0.0))
    assert not mark.exists()


@pytest.mark.usefixtures("alone")
def test_mutated_checkpoints_end_in_a_message(tmp_path: Path) -> None:
    kept, choice, found = checkpoints(tmp_path), random.Random(0), Counter[str]()
    kept.save(1, *model_of(1.0), {"note": 1}, 0.5)
    kept.wait()
    folder = tmp_path / "step-00000001"
    sound = {path: path.read_bytes() for path in folder.iterdir()}
    for number in range(90):
        path = choice.choice(list(sound))
        path.write_bytes(fuzz.mutated(sound[path], choice))
        try:
            if kept.latest() is not None:
                kept.load(1, *model_of(0.0))
            found["read"] += 1
        except ContractError:
            found["refused"] += 1
        except Exception as error:
            error.add_note(f"file {number}: {path}")
            raise
        path.write_bytes(sound[path])
    assert found["refused"] > 20
    assert {path.name for path in tmp_path.iterdir()} == {folder.name}


def test_a_judge_s_process_sends_no_pickles(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    source = (
        "import os, pickle, sys\n"
        "class Runs:\n"
        f"    def __reduce__(self): return os.mkdir, ({str(mark)!r},)\n"
        "def judge(prompt, completion):\n"
        "    from multiprocessing.connection import Connection\n"
        "    Connection(int(sys.argv[1])).send(Runs())\n"
        "    return 1.0\n"
    )
    judge = Function(_function("beside:judge"), {"beside": source}, tmp_path / "code", 20)
    heard: list[Any] = []
    judge.ask([("[]", "text")], lambda _, answer: heard.append(answer))
    judge.close()
    assert heard[0].fault is not None
    assert not mark.exists()


def _function(name: str) -> Any:
    from stages.judge.config import FunctionJudge

    return FunctionJudge(name="function", function=name)


@pytest.mark.parametrize("name", ["../evil:f", "/tmp/evil:f", "os.path:join", "a b:f", "evil:f.g", "evil"])
def test_a_judge_s_function_is_of_the_recipe_s_folder(name: str) -> None:
    with pytest.raises(ValueError, match="function"):
        _function(name)


# Models.


def test_code_that_comes_with_a_model_is_not_run(tiny_model: Path, tmp_path: Path) -> None:
    model, mark = shutil.copytree(tiny_model, tmp_path / "model"), tmp_path / "mark"
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    with pytest.raises(RecipeError, match=r"is a model that transformers does not have.*is never run"):
        load_model(str(model), "float32", 64)
    assert not mark.exists()


# Recipes and cluster files.


def mutated_sections(text: str, seed: int, tmp_path: Path, recipe: bool) -> str:
    choice = random.Random(seed)
    (tmp_path / "mutated.yaml").write_bytes(fuzz.mutated(text.encode(), choice))
    files = [tmp_path / "mutated.yaml", ROOT / "configs/clusters/laptop.yaml"]
    if not recipe:
        files = [ROOT / "configs/recipes/hh-smollm2.yaml", tmp_path / "mutated.yaml"]
    try:
        load(files[0], files[1], [])
    except RecipeError:
        return "refused"
    return "read"


@pytest.mark.parametrize("path", ["recipes/on-policy.yaml", "recipes/published/tulu3-8b.yaml", "clusters/h100x64.yaml"])
def test_mutated_recipes_end_in_a_message(path: str, tmp_path: Path) -> None:
    text = (ROOT / "configs" / path).read_text()
    found = Counter(mutated_sections(text, seed, tmp_path, "recipes" in path) for seed in range(120))
    assert min(found["read"], found["refused"]) > 3


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.mkdir [x]",
        "a: !!python/name:os.system",
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(9)),
    ],
)
def test_yaml_makes_plain_data_of_no_end_of_values(text: str) -> None:
    with pytest.raises(RecipeError):
        parse(text, "x.yaml")
    assert parse("a: &a [1]\nb: *a", "x.yaml") == {"a": [1], "b": [1]}


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("shard.source=s3://key:hunter2@host/triples", "shard.source"),
        ("judge={name: llm, model: m, endpoint: 'http://me:hunter2@host/v1'}", "judge.endpoint"),
        ("shard.source=https://host/a.jsonl?X-Amz-Signature=hunter2", "shard.source"),
        ("cluster.root=s3://key:hunter2@bucket/x", "root"),
    ],
)
def test_a_password_in_a_url_is_refused_and_not_told(override: str, field: str) -> None:
    with pytest.raises(RecipeError, match=f"{field}: this URL has a password") as told:
        load(ROOT / "configs/recipes/on-policy.yaml", ROOT / "configs/clusters/laptop.yaml", [override])
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    "override", ["cluster.env_vars.KEY=[hunter2]", "cluster.env_vars={KEY: [hunter2]}", "cluster.env_vars.KEY=[hunter2"]
)
def test_what_goes_into_the_environment_is_not_told(override: str) -> None:
    with pytest.raises(RecipeError, match=r"env_vars") as told:
        load(ROOT / "configs/recipes/on-policy.yaml", ROOT / "configs/clusters/laptop.yaml", [override])
    assert "hunter2" not in str(told.value)


# Manifests.


def test_mutated_manifests_end_in_a_message(project: Project) -> None:
    recipe, cluster = load(project.recipe, project.cluster, [])
    store, steps = Store.open(cluster.root, cluster.work), project.plan()
    choice, found = random.Random(1), Counter[str]()
    for number in range(300):
        step = steps[choice.choice(("shard", "score"))]
        path = step.folder / MANIFEST
        sound = path.read_bytes()
        path.write_bytes(fuzz.mutated(sound, choice))
        try:
            damage(step.folder, Manifest.read(step.folder), content=False)
            found[look_up(step, store).state] += 1
        except FOR_USERS:
            found["refused"] += 1
        except Exception as error:
            error.add_note(f"manifest {number}")
            raise
        store.manifests(step.stage.name)
        path.write_bytes(sound)
    assert found["refused"] > 100
    assert recipe.name


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(OUT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(field=st.sampled_from(["stage", "fingerprint", "payload", "files", "facts", "provenance", "more"]), value=JSON)
def test_any_manifest_ends_in_a_message(tmp_path: Path, field: str, value: Any) -> None:
    """One whose digest is right."""
    sound = {"stage": "shard", "fingerprint": "0" * 64, "payload": {}, "files": [], "facts": {}, "provenance": {}}
    (tmp_path / MANIFEST).write_bytes(written_manifest(sound | {field: value}))
    with contextlib.suppress(ContractError):
        for record in Manifest.read(tmp_path).files:
            assert (tmp_path / record.name).is_relative_to(tmp_path)
            assert ".." not in Path(record.name).parts
    with contextlib.suppress(ContractError):
        (tmp_path / MANIFEST).write_bytes(json.dumps(value).encode())
        Manifest.read(tmp_path)
