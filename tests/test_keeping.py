"""What a store holds, what may go, and what never does: on real stores."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Project
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.fingerprint import fingerprint
from pipeline.keeping.garbage import dependents, sort_out
from pipeline.keeping.inventory import inventory
from pipeline.keeping.removal import remove
from pipeline.keeping.uses import using
from pipeline.store import Store
from stages.artifacts import Manifest, list_files
from stages.errors import MissingArtifact

DAY = 86400


def here(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def at(root: Path) -> tuple[str, str]:
    return "--set", f"cluster.root={root}"


def make(
    store: Store, stage: str, number: int, made_from: Sequence[str] = (), days: float = 0, done: bool = True
) -> str:
    """An artifact of one small file; its fingerprint."""
    payload = {
        "stage": stage, "version": 1, "config": {"number": number},
        "inputs": {f"input-{i}": name for i, name in enumerate(made_from)},
    }  # fmt: skip
    name, origin = fingerprint(payload), {"recipe": f"recipe-{number}", "named": {}}
    folder = store.begin(stage, name, payload, origin)
    (folder / "part-00000.bin").write_bytes(b"x" * 100)
    if done:
        finished = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - days * DAY))
        told = {"finished": finished} | origin  # as `commit` writes it, which asks what is installed each time
        Manifest(stage, name, payload, list(list_files(folder)), {}, told).write(folder)
    else:
        for path in (*folder.iterdir(), folder):
            os.utime(path, times=(time.time() - days * DAY,) * 2)
    return name


@dataclass
class Chain:
    """pairs -> log-probs -> two trainings, one of them stopped."""

    store: Store
    pairs: str
    scored: str
    trained: str
    stopped: str


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    store = Store.open(str(tmp_path), str(tmp_path))
    pairs = make(store, "shard", 1, days=30)
    scored = make(store, "score", 1, [pairs], days=30)
    trained = make(store, "train", 1, [pairs, scored], days=30)
    return Chain(store, pairs, scored, trained, make(store, "train", 2, [pairs, scored], days=30, done=False))


def test_ls_says_what_there_is_and_who_needs_it(chain: Chain, tmp_path: Path) -> None:
    listed = here("ls", *at(tmp_path)).stdout
    row = next(line for line in listed.splitlines() if line.startswith("score"))
    assert row.split() == [
        "score", chain.scored[:12], "finished", "100", "B", "30", "d", "recipe-1", f"shard/{chain.pairs[:12]}",
        *(f"train/{name[:12]}" for name in (chain.trained, chain.stopped)),
    ]  # fmt: skip
    assert "4 artifacts" in listed
    found = {row["name"]: row for row in json.loads(here("ls", *at(tmp_path), "--json").stdout)}
    assert found[chain.stopped[:12]]["state"] == "partial"
    assert found[chain.stopped[:12]]["recipe"] == "recipe-2"
    assert found[chain.stopped[:12]]["made_from"]["input-1"] == f"score/{chain.scored[:12]}"


def test_rm_names_what_depends_on_it(chain: Chain, tmp_path: Path) -> None:
    refused = here("rm", chain.pairs[:8], *at(tmp_path))
    assert refused.exit_code == 2
    assert f"3 artifacts were made from shard/{chain.pairs[:12]}" in refused.stderr
    assert "To remove them with it: --with-dependents" in refused.stderr
    assert len(inventory(chain.store)) == 4
    done = here("rm", chain.store.folder("score", chain.scored), "--with-dependents", *at(tmp_path))
    assert done.exit_code == 0, done.output
    assert [kept.stage for kept in inventory(chain.store).values()] == ["shard"]
    assert not (tmp_path / ".removed").exists()
    missing = here("rm", f"score/{chain.scored[:12]}", *at(tmp_path))
    assert "there is no artifact score/" in missing.stderr
    make(chain.store, "shard", 2)
    assert "Give more of its name" in here("rm", "shard/", *at(tmp_path)).stderr or missing.exit_code == 2


LIVING = """
import sys, time
from pathlib import Path
from pipeline.keeping.uses import using
from pipeline.store import Store
store = Store.open(sys.argv[1], sys.argv[1])
with using(store, [(sys.argv[2], sys.argv[3][:12])]), store.hold(sys.argv[2], sys.argv[3], print):
    print("holds", flush=True)
    time.sleep(60)
"""


def test_what_a_living_process_uses_is_not_removed_and_a_killed_one_uses_nothing(chain: Chain, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIVING, str(tmp_path), "train", chain.stopped]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "holds\n"
        assert f" {process.pid} " in here("rm", chain.stopped[:12], *at(tmp_path)).stderr
        listed = here("ls", *at(tmp_path)).stdout
        assert "running" in next(line for line in listed.splitlines() if chain.stopped[:12] in line.split())
        told = json.loads(here("gc", *at(tmp_path), "--json").stdout)
        assert told["goes"] == []
        assert f"in use by process {process.pid}" in told["stays"][f"train/{chain.stopped[:12]}"]
        process.kill()
    gone = here("gc", *at(tmp_path), "--yes")
    assert f"removed train/{chain.stopped[:12]}" in gone.stdout
    assert len(inventory(chain.store)) == 3


def test_gc_says_first_and_keeps_what_is_young_or_finished(chain: Chain, tmp_path: Path) -> None:
    lost = make(chain.store, "shard", 2, days=8)
    begun = make(chain.store, "score", 2, [lost], done=False)  # young, and so is what it needs
    said = here("gc", *at(tmp_path))
    assert f"train/{chain.stopped[:12]}" in said.stdout
    assert "Nothing has been removed" in said.stdout
    assert lost[:12] not in said.stdout
    assert len(inventory(chain.store)) == 6
    here("gc", *at(tmp_path), "--yes")
    assert {name for _, name in inventory(chain.store)} == {
        name[:12] for name in (chain.pairs, chain.scored, chain.trained, lost, begun)
    }
    here("gc", *at(tmp_path), "--days", 0, "--yes")
    assert len(inventory(chain.store)) == 3
    refused = here("gc", *at(tmp_path), "--trainings")
    assert refused.exit_code == 2
    assert "none is given: raydpo gc RECIPE" in refused.stderr


def test_gc_keeps_what_recipes_ask_for(trained: Project, tmp_path: Path) -> None:
    shutil.copytree(trained.folder / "runs", tmp_path / "runs")
    root, store = at(tmp_path / "runs"), Store.open(str(tmp_path / "runs"), str(tmp_path / "runs"))
    make(store, "train", 1)
    done = here("gc", trained.recipe, "--cluster", trained.cluster, *root, "--days", 0, "--trainings", "--yes")
    assert done.exit_code == 0, done.output
    asked = {(step.stage.name, step.folder.name) for step in trained.plan().values()}
    assert set(inventory(store)) == asked
    assert {step.state for step in trained.plan(root[1]).values()} == {"hit"}
    here(
        "gc",
        trained.recipe,
        "--cluster",
        trained.cluster,
        *root,
        "--set",
        "train.seed=7",
        "--days",
        0,
        "--trainings",
        "--yes",
    )
    assert {kept.stage for kept in inventory(store).values()} == {"shard", "score"}  # it asks for another training


def test_a_policy_that_a_recipe_names_is_referred_to(trained: Project) -> None:
    policy = trained.plan()["train"].folder / "policy"
    store = Store.open(str(trained.folder / "runs"), str(trained.folder / "runs"))
    step = trained.plan(f"train.policy={policy}", "train.starts_at_reference=false")["train"]
    assert step.origin["named"]["policy"] == str(policy)
    step_folder = store.begin("train", step.fingerprint, step.payload, step.origin)
    try:
        found = inventory(store)
        assert found["train", step.folder.name].key in found["train", policy.parent.name].needed_by
    finally:
        shutil.rmtree(step_folder)


def test_what_lies_in_object_storage_is_listed_and_removed(tmp_path: Path) -> None:
    store = Store.open("memory://keeping/team", str(tmp_path))
    names: list[str] = []
    for stage in ("shard", "score", "train"):
        payload = {"stage": stage, "version": 1, "config": {}, "inputs": dict(zip("abc", names, strict=False))}
        names.append(fingerprint(payload))
        draft = store.begin(stage, names[-1], payload, {"recipe": "mine", "named": {}})
        (draft / "policy").mkdir()
        (draft / "policy" / "model.bin").write_bytes(b"x" * 100)
        store.commit(stage, names[-1], payload, {}, 1.0, {"recipe": "mine", "named": {}})
    copy = store.on_disk(store.folder("train", names[2]) / "policy")
    begun = store.begin("train", "0" * 64, {"inputs": {"pairs": names[0]}}, {"recipe": "mine", "named": {}})

    shard, score, train = ((stage, name[:12]) for stage, name in zip(("shard", "score", "train"), names, strict=True))
    found = inventory(store)
    assert {key: (kept.state, kept.bytes, set(kept.needed_by)) for key, kept in found.items() if key[0] != "train"} == {
        shard: ("finished", 100, {score, train, ("train", begun.name)}),
        score: ("finished", 100, {train}),
    }
    assert found["train", begun.name].state == "partial"
    remove(store, lambda found: dependents([score], found))
    assert set(inventory(store)) == {shard, score, ("train", begun.name)}
    assert not copy.exists()
    remove(store, lambda found: list(found.values()))
    assert not inventory(store)
    assert not begun.exists()
    assert not [path for path in store.root.rglob("*") if path.is_file()]


def test_a_manifest_that_cannot_be_read_stops_gc(chain: Chain, tmp_path: Path) -> None:
    (chain.store.folder("score", chain.scored) / "manifest.json").write_text("{")
    refused = here("gc", *at(tmp_path), "--yes")
    assert refused.exit_code == 2
    assert f"the manifest of score/{chain.scored[:12]} cannot be read" in refused.stderr
    assert len(inventory(chain.store)) == 4


def test_what_is_made_of_nobody_knows_what_stops_gc(chain: Chain, tmp_path: Path) -> None:
    (chain.store.folder("train", chain.stopped) / ".making.json").unlink()
    assert here("gc", *at(tmp_path)).exit_code == 0
    with chain.store.hold("train", chain.stopped, print):
        refused = here("gc", *at(tmp_path), "--yes")
    assert refused.exit_code == 2
    assert "does not say from what. Nothing is removed: wait for its end" in refused.stderr.replace("\n", " ")


def test_a_run_notices_what_was_removed_since_its_plan(trained: Project, tmp_path: Path) -> None:
    shutil.copytree(trained.folder / "runs", tmp_path / "runs")
    from pipeline.plan import plan
    from pipeline.recipe.load import load
    from pipeline.runner import run

    root = f"cluster.root={tmp_path / 'runs'}"
    recipe, cluster = load(trained.recipe, trained.cluster, [root, "train.seed=5"])
    store = Store.open(cluster.root, cluster.work)
    steps = plan(recipe, store)
    shutil.rmtree(steps[1].folder)
    with pytest.raises(MissingArtifact, match=r"score .* has been removed since this run was planned\. Run again"):
        list(run(steps, ["train"], cluster, store, nullcontext, lambda _: nullcontext(), print))
    assert not list((tmp_path / "runs" / ".in-use").iterdir())


STAGES = ("sample", "judge", "shard", "score", "train", "evaluate")


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[str, list[int], float, bool, bool]]:
    """(stage, what it is made from, days, finished, used by a living process) of artifacts, inputs first."""
    rows: list[tuple[str, list[int], float, bool, bool]] = []
    for number in range(draw(st.integers(1, 9))):
        earlier = [i for i in range(number) if rows[i][3]]  # only what is finished is made from
        made_from = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=3)) if earlier else []
        rows.append(
            (
                draw(st.sampled_from(STAGES)),
                made_from,
                draw(st.sampled_from([1, 30])),
                draw(st.booleans()),
                draw(st.booleans()),
            )
        )
    return rows


@settings(max_examples=60, deadline=None)
@given(
    rows=graphs(),
    asked=st.sets(st.integers(0, 8)),
    trainings=st.booleans(),
    lost=st.sets(st.integers(0, 8), max_size=1),
)
def test_gc_never_removes_what_is_reachable(
    rows: list[tuple[str, list[int], float, bool, bool]], asked: set[int], trainings: bool, lost: set[int]
) -> None:
    """On a store with real manifests, drafts and notes of use; some of it removed by hand before."""
    with tempfile.TemporaryDirectory() as folder:
        store, names = Store.open(folder, folder), []
        for number, (stage, made_from, days, done, _) in enumerate(rows):
            names.append((stage, make(store, stage, number, [names[i][1] for i in made_from], days, done)))
        for number in lost & set(range(len(rows))):
            shutil.rmtree(store.folder(*names[number]))
        there = {i for i, name in enumerate(names) if store.folder(*name).exists()}
        used = {i for i in there if rows[i][4]}
        roots = used | {i for i in there if i in asked or rows[i][2] < 7}
        if not trainings:
            roots |= {i for i in there if rows[i][0] in ("train", "evaluate") and rows[i][3]}
        reachable, waiting = set(roots), list(roots)
        while waiting:
            new = set(rows[waiting.pop()][1]) & there - reachable
            reachable |= new
            waiting += new
        recipes = {(names[i][0], names[i][1][:12]): "my.yaml" for i in asked if i < len(rows)}
        with using(store, [(names[i][0], names[i][1][:12]) for i in used]):
            gone = remove(store, lambda found: sort_out(found, recipes, time.time(), 7, trainings)[1])
        left = {i for i in there if (store.folder(*names[i]) / "part-00000.bin").exists()}
        assert left == reachable
        assert {kept.name for kept in gone} == {names[i][1][:12] for i in there - reachable}


def test_diff_of_recipes_names_fields_and_results(trained: Project, tmp_path: Path) -> None:
    content = yaml.safe_load(trained.recipe.read_text())
    content["train"]["loss"] = {"name": "ipo", "beta": 0.3}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    told = here("diff", trained.recipe, tmp_path / "other.yaml", "--cluster", trained.cluster, "--json")
    assert told.exit_code == 0, told.output
    shard, score, train = json.loads(told.stdout)
    assert shard == {"stage": "shard", "states": ["finished"] * 2} or shard["states"] == ["hit", "hit"]
    assert score.keys() == {"stage", "states"}
    assert train["states"] == ["hit", "miss"]
    assert train["config"]["loss.name"] == ["sigmoid", "ipo"]
    assert train["config"]["loss.beta"] == [0.1, 0.3]
    mixed = here("diff", trained.recipe, "train/0123", "--cluster", trained.cluster)
    assert mixed.exit_code == 2
    assert "is a recipe, train/0123 an artifact" in mixed.stderr


def test_diff_of_artifacts(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), str(tmp_path))
    pairs = make(store, "shard", 1)
    one, other = make(store, "score", 1, [pairs]), make(store, "score", 2, [pairs])
    told = here("diff", one[:12], other[:12], *at(tmp_path)).stdout
    assert "score.number" in told
    assert "+1" in told
    assert pairs[:12] not in told  # an input of both
    refused = here("diff", one[:12], pairs[:12], *at(tmp_path))
    assert refused.exit_code == 2
    assert "no fields in common. Compare artifacts of one stage" in refused.stderr.replace("\n", " ")
