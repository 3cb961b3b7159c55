"""The bill of a plan: rows and tokens are the manifests', operations counted ones, times those of earlier runs."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Project
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from pipeline.bill.bill import Bill, bill_of
from pipeline.bill.rows import PARSED, of_source
from pipeline.bill.speed import Seen, of_earlier
from pipeline.bill.work import forward
from pipeline.cli import app
from pipeline.recipe.load import load
from pipeline.store import Store
from stages.shard.config import ShardConfig
from stages.train.memory.sizes import sizes_of


def bill(project: Project, *overrides: str) -> Bill:
    _, cluster = load(project.recipe, project.cluster, list(overrides))
    return bill_of(list(project.plan(*overrides).values()), cluster, Store.open(cluster.root, cluster.work))


def test_rows_and_tokens_are_the_manifests(trained: Project) -> None:
    found, steps = bill(trained, "train.loss.beta=0.2"), trained.plan()
    shard, score, train = (steps[name].manifest.facts for name in ("shard", "score", "train"))
    for name in ("shard", "score"):
        item = found.of(name)
        assert (item.rows, item.tokens, item.exact, item.how) == (shard["pairs"], shard["tokens"], True, "counted")
        assert item.seconds is None  # it is made already
    assert score["tokens"] == shard["tokens"]
    item = found.of("train")
    assert item.rows == train["steps"]
    pairs = train["steps"] * 5
    assert item.tokens == round(pairs * (shard["tokens"] - shard["prompt_tokens"]) / shard["pairs"])


def test_what_is_not_made_is_told_from_the_rows(trained: Project, tmp_path: Path) -> None:
    found = bill(trained, f"cluster.root={tmp_path}")
    facts = trained.plan()["shard"].manifest.facts
    item = found.of("shard")
    assert item.rows == facts["rows"] == facts["pairs"]  # all rows make a pair
    assert item.how == "rows counted, tokens estimated from the first 40"
    assert item.tokens == pytest.approx(facts["tokens"], rel=0.02)
    assert found.of("train").rows == 6


def test_times_are_those_of_earlier_artifacts(trained: Project, tmp_path: Path) -> None:
    made, alone = trained.plan(), f"cluster.root={tmp_path}"
    for step in made.values():  # without what other tests have made beside them
        shutil.copytree(step.folder, tmp_path / step.stage.name / step.folder.name)
    for changed, stage in (("train.loss.beta=0.2", "train"), ("shard.max_length=127", "shard")):
        item, earlier = bill(trained, changed, alone).of(stage), made[stage].manifest
        assert item.seconds == pytest.approx(earlier.provenance["seconds"], rel=0.05)
        assert item.basis == "by one earlier artifact of this store, whose error is not known"
        assert item.bytes == pytest.approx(sum(file.bytes for file in earlier.files), rel=0.5)
    item = bill(trained, "shard.max_length=127", alone).of("score")
    assert item.seconds == pytest.approx(made["score"].manifest.provenance["seconds"], rel=0.05)
    assert bill(trained, "train.loss.beta=0.2", alone).of("train").memory == pytest.approx(
        1e9 * made["train"].manifest.facts["peak_memory_gb"], rel=0.6
    )


def test_what_earlier_artifacts_answer_is_not_on_it(trained: Project, tmp_path: Path) -> None:
    alone, other = f"cluster.root={tmp_path}", "shard.num_parts=3"
    for step in trained.plan().values():
        shutil.copytree(step.folder, tmp_path / step.stage.name / step.folder.name)
    trained.run(alone, other, stages=["shard"])
    item = bill(trained, alone, other).of("score")
    assert (item.flops, item.memory) == (0, None)
    assert item.basis == "by what it takes to start: all is known from earlier artifacts"
    assert bill(trained, alone, other, "score.dtype=bfloat16").of("score").flops > 0  # another reference


def test_what_a_stopped_run_has_finished_is_not_on_it(trained: Project, tmp_path: Path) -> None:
    made, alone = trained.plan(), f"cluster.root={tmp_path}"
    shutil.copytree(made["shard"].folder, tmp_path / "shard" / made["shard"].folder.name)
    whole = {name: bill(trained, alone).of(name) for name in ("score", "train")}
    store = Store.open(str(tmp_path), str(tmp_path))
    for name in ("score", "train"):
        draft = store.draft(name, made[name].fingerprint)
        shutil.copytree(made[name].folder, draft)
        (draft / "manifest.json").unlink()
        if name == "score":
            first, *others = sorted(draft.glob("part-*"))
            assert len(others) == 3
            first.unlink()
        else:
            shutil.rmtree(draft / "checkpoints", ignore_errors=True)
            (draft / "checkpoints/step-00000002").mkdir(parents=True)
            (draft / "checkpoints/step-00000002/meta.json").write_text("{}")
    left = {name: bill(trained, alone).of(name) for name in ("score", "train")}
    assert left["score"].flops == pytest.approx(whole["score"].flops / 4)
    assert left["train"].flops == pytest.approx(whole["train"].flops * 4 / 6)
    assert left["train"].rows == whole["train"].rows == 6


def test_a_reference_in_the_trainer_would_add_a_third(trained: Project) -> None:
    found = bill(trained, "train.loss.beta=0.2").reference
    assert found is not None
    assert 1 / 3 < found.share < 0.6  # of steps a third, of evaluations as much as they have
    assert found.cached == 0  # it is there already
    assert found.memory == 4 * sizes_of(str(trained.plan()["train"].config.policy)).params
    assert bill(trained, "train.loss=simpo").reference is None


def test_operations_are_those_of_a_forward_pass(tiny_model: Path) -> None:
    """As torch counts them, of matrices and attention, of all positions."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.arange(100)[None] % 300)
    sizes = sizes_of(str(tiny_model))
    assert sizes is not None
    attention = 2 * sizes.layers * sizes.queries * 100 * 100  # torch counts the whole square, of which half is needed
    assert forward(sizes, 100, 100, 100) + attention == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_earlier_runs_tell_how_far_they_are_off() -> None:
    assert of_earlier([]) is None
    alike = [Seen(amount, 10 + amount / 5, 10) for amount in (50.0, 100.0, 400.0)]
    speed = of_earlier(alike)
    assert speed is not None
    assert (speed.start, speed.rate, speed.error) == (10, 5, pytest.approx(1))
    assert speed.seconds(1000) == pytest.approx(210)
    odd = of_earlier([alike[0], replace(alike[0], seconds=40)])
    assert odd is not None
    assert odd.error == pytest.approx(2)
    assert "within a factor of 2.00" in odd.basis


def test_rows_of_large_files_are_estimated(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "How was the sea? " * 30, "chosen": "good", "rejected": "bad"})
    count = round(1.2 * PARSED / len(line))
    (tmp_path / "rows.json").write_text(f"[{', '.join([line] * count)}]")
    config = ShardConfig(source=str(tmp_path / "rows.json"), tokenizer="-")
    found = of_source(config.all_sources[0], config)
    assert found is not None
    assert not found.exact
    assert found.count == pytest.approx(count, rel=0.05)


def test_plan_shows_the_bill_and_stays_light(trained: Project, tmp_path: Path) -> None:
    words = ["plan", str(trained.recipe), "--cluster", str(trained.cluster), "--set", f"cluster.root={tmp_path}"]
    rows = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert [row["bill"]["rows"] for row in rows] == [40, 40, 6]
    assert all(row["bill"]["device_hours"] > 0 for row in rows)
    assert rows[2]["without_cache"]["flops"] > 0
    code = (
        f"import sys; from pipeline.cli import app; app({words!r}, standalone_mode=False); "
        "print([name for name in ('torch', 'ray', 'vllm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    for told in ("Amounts of shard, score: rows counted", "Without the cache a reference in the trainer would add"):
        assert told in done.stdout


def test_a_disk_that_is_too_small_is_told(disk: Path, smollm2: Path) -> None:  # noqa: ARG001 - the demo's model
    words = ["plan", "configs/recipes/demo.yaml", "--set", f"cluster.root={disk}/runs"]
    done = subprocess.run([sys.executable, "-m", "pipeline", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "and its disk has 0.1 GB free. Choose another: --set cluster.root=FOLDER" in done.stdout.replace("\n", " ")
