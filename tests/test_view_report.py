"""The report: its figures are those of manifests, metrics.jsonl and parts; it asks nobody, and trusts no text."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conftest import Project, make_project
from hypothesis import given
from hypothesis import strategies as st
from page import Page
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.report import runs_of, write_after
from pipeline.recipe.load import load
from pipeline.store import Store
from pipeline.view.report import evaluation, page, scoring, training
from pipeline.view.report.run import Run, path_of
from pipeline.view.report.thin import some, thinned
from stages import schema
from stages.artifacts import PolicyCheckpoint, PreferencePairs, ReferenceLogprobs
from stages.evaluate.evaluation import SAMPLES
from stages.train.following.happened import Happened

MOST = 3_000_000  # bytes
BAD = "</script><img src=x onerror=alert(1)> $x$ & <b>"


def report(project: Project, out: Path, *options: object) -> Page:
    arguments = ["report", project.recipe, "--cluster", project.cluster, "--out", out, *options]
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert f"The report: {out}" in done.output.replace("\n", "")
    assert out.stat().st_size < MOST
    return Page(out.read_text())


@pytest.fixture(scope="module")
def written(trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "page.html"
    report(trained, out)
    return out


@pytest.fixture(scope="module")
def shown(written: Path) -> Page:
    return Page(written.read_text())


def runs(project: Project, *set_: str) -> list[Run]:
    return runs_of([project.recipe], project.cluster, list(set_))


def test_steps_are_those_of_metrics(trained: Project, shown: Page) -> None:
    step = trained.plan()["train"]
    metrics = PolicyCheckpoint(step.folder).metrics
    table = shown.tables[f"train-{step.fingerprint[:8]}-steps"]
    assert len(table.rows) == len(metrics)
    assert {"loss", "eval/loss", "rewards/margins", "logps/chosen", "grad_norm", "lr"} < set(table.columns)
    for name in table.columns:
        values = [float(value) if value else None for value in table.column(name)]
        assert values == [line.get(name) for line in metrics], name


def test_curves_are_those_of_metrics(trained: Project) -> None:
    metrics = PolicyCheckpoint(trained.plan()["train"].folder).metrics
    drawn = {chart.name: chart for chart in training.training(runs(trained)).blocks if chart.kind == "chart"}
    for name, metric, place in (
        ("loss", "loss", 0), ("loss", "eval/loss", 1), ("rewards", "rewards/rejected", 1), ("lr", "lr", 0),
        ("per-token", "logps/chosen_per_token", 0), ("memory", "peak_memory_gb", 0),
    ):  # fmt: skip
        points = tuple((line["step"], line[metric]) for line in metrics if metric in line)
        assert drawn[f"train-{name}"].lines[place].points == points, name
    assert f"training: {metrics[1]['loss']:.3g} at 1 to {metrics[-1]['loss']:.3g} at 6" in drawn["train-loss"].described


def test_facts_are_those_of_manifests(trained: Project, shown: Page) -> None:
    steps = trained.plan()
    shard, score, train = (steps[name].manifest for name in ("shard", "score", "train"))
    name = f"shard-{shard.fingerprint[:8]}"
    counts = shown.tables[f"{name}-counts"].figures
    assert {key: int(counts[key]) for key in ("rows", "pairs", "train", "eval", "tokens")} == {
        key: shard.facts[key] for key in ("rows", "pairs", "train", "eval", "tokens")
    }
    lengths = shown.tables[f"{name}-lengths"]
    for row, (side, told) in zip(lengths.rows, shard.facts["report"]["lengths"].items(), strict=True):
        assert [row[0][0], *(int(value) for _, value in row[1:])] == [side, *told.values()]
    (source,) = shown.tables[f"{name}-sources"].rows
    assert int(source[1][1]) == shard.facts["pairs"]
    reference = shown.tables[f"score-{score.fingerprint[:8]}-reference"].figures
    assert float(reference["accuracy: chosen has the greater log-prob"]) == score.facts["reference"]["accuracy"]
    outliers = shown.tables[f"score-{score.fingerprint[:8]}-outliers"]
    assert outliers.column("pair") == [each["pair_id"] for each in score.facts["reference"]["outliers"]]
    outcome = shown.tables["train-outcome"]
    assert [float(outcome.column(f"held-out loss, {when}")[0]) for when in ("first", "last")] == train.facts[
        "before and after"
    ]["eval/loss"]


def test_lineage_names_what_each_was_made_from(trained: Project, shown: Page) -> None:
    steps, table = trained.plan(), shown.tables["artifacts"]
    prints = {name: step.fingerprint[:12] for name, step in steps.items()}
    assert dict(zip(table.column("stage"), table.column("fingerprint"), strict=True)) == prints
    made_from = dict(zip(table.column("stage"), table.column("made from"), strict=True))
    assert made_from["train"] == f"pairs {prints['shard']}, logprobs {prints['score']}"
    sizes = [sum(record.bytes for record in step.manifest.files) for step in steps.values()]
    assert [int(value) for value in table.column("bytes")] == sizes
    assert "torch" in table.column("versions")[0]


def test_histograms_hold_every_pair(trained: Project) -> None:
    steps = trained.plan()
    drawn = {chart.title: chart for chart in page.sections(runs(trained))[1].blocks if chart.kind == "chart"}
    assert [sum(y for _, y in line.points[:-1]) for line in drawn["shard: lengths"].lines] == [40, 40, 40]
    scored = ReferenceLogprobs(steps["score"].folder)
    tables = [scored.read_unchecked(part) for part in scored.parts]
    means = np.concatenate(
        [
            table["ref_chosen_logps"].to_numpy() / pc.list_value_length(table["ref_chosen_token_logps"])
            for table in tables
        ]
    )
    (chart,) = [each for each in scoring.scoring(runs(trained)).blocks if each.kind == "chart"][:1]
    low, high = chart.lines[0].points[0][0], chart.lines[0].points[-1][0]
    assert low <= np.median(means) <= high


def test_it_asks_nobody(written: Path, shown: Page) -> None:
    for name, value in shown.attributes:
        assert "://" not in value, (name, value)
        if name in ("src", "href"):
            assert value.startswith(("#", "data:")), value
    assert "src" not in {name for name, _ in shown.attributes}
    text = written.read_text()
    assert re.findall(r"url\((?!#)", text) == []
    assert "@import" not in text
    assert re.search(r"default-src 'none'.*connect-src 'none'", text)


def test_ids_are_unique_and_links_lead_somewhere(shown: Page) -> None:
    assert len(shown.ids) == len(set(shown.ids))
    links = [value[1:] for name, value in shown.attributes if name == "href" and value.startswith("#")]
    assert links
    assert set(links) <= set(shown.ids)


def test_every_figure_has_words_and_a_png(written: Path, shown: Page) -> None:
    assert all(len(value) > 20 for name, value in shown.attributes if name == "aria-label" and ", " in value)
    figures = shown.tags.count("figure")
    assert figures == sum(1 for name, value in shown.attributes if (name, value) == ("role", "img")) > 10
    pngs = list(written.parent.glob("page-*.png"))
    assert len(pngs) == figures
    assert all(png.read_bytes().startswith(b"\x89PNG") for png in pngs)
    assert all(table.caption for table in shown.tables.values())
    assert "<h1>" in written.read_text()


def test_what_has_not_run_is_said(tmp_path: Path, tiny_model: Path) -> None:
    project = make_project(tmp_path, tiny_model)
    shown = report(project, tmp_path / "out.html")
    for stage in ("shard", "score", "train"):
        assert f"{stage}: miss, never made" in shown.text
    assert "These recipes do not evaluate" in shown.text
    assert "figure" not in shown.tags


def evaluated(project: Project, prompts: int = 20) -> Run:
    """The finished project with an evaluation that was made here, of texts that nobody should trust."""
    (project.folder / "letters.py").write_text("def vowels(prompt, completion): return 0")
    asked = f"evaluate={{judge: 'letters:vowels', num_prompts: {prompts}}}"
    (run,) = runs(project, asked)
    step = run.steps[-1]
    folder = run.store.begin("evaluate", step.fingerprint, step.payload, step.origin)
    row: dict[str, Any] = {"sample": 0, "split": "eval", "prompt": BAD, "policy_first": None, "policy_second": None}
    for who in ("policy", "reference"):
        row |= {f"{who}_text": who + BAD * 100, f"{who}_ids": [1, 2], f"{who}_stopped": True, f"{who}_reward": 1.5}
        row |= {f"{who}_by_policy": [-1.0, -1.0], f"{who}_by_reference": [-1.0, -1.5]}
    rows = [row | {"prompt_id": str(number)} for number in range(20)]
    schema.write_part(pa.Table.from_pylist(rows, schema=SAMPLES), folder / "samples.parquet")
    of = {"value": 0.25, "low": 0.125, "high": 0.5}
    facts = {
        "prompts": 20,
        "held out": {
            "eval": {"pairs": 9, "loss": of, "rewards/accuracies": of, "calibration": {"ece": of, "bins": []}}
        },
        "written": {"reward": {"policy": of, "reference": of, "gain": of}, "win rate": of, "kl": of},
        "faults": {BAD: 3},
    }
    run.store.commit("evaluate", step.fingerprint, step.payload, facts, 1.0, step.origin)
    (run,) = runs(project, asked)
    return replace(run, name=BAD)


def test_evaluation_and_text_that_is_not_trusted(trained: Project, tmp_path: Path) -> None:
    run = evaluated(trained)
    page.write([run], tmp_path / "page.html")
    shown = Page((tmp_path / "page.html").read_text())
    assert shown.tags.count("script") == 1
    assert "img" not in shown.tags
    assert "b" not in shown.tags
    assert BAD in shown.text
    assert f"policy{BAD}" in shown.text
    assert "letters)" in shown.text  # long texts are cut, and say so
    assert shown.text.count("log policy/reference 0.50") == 2 * evaluation._SAMPLES
    held_out = shown.tables["evaluate-held-out"].figures
    assert held_out["eval, loss"] == held_out["eval, calibration, ece"] == "0.25"
    assert shown.tables["evaluate-written"].rows[0][1] == ("0.25 [0.125, 0.5]", "0.25")
    (chart,) = [block for block in evaluation.evaluation([run]).blocks if block.kind == "chart"]
    assert "0.25 (0.125 to 0.5)" in chart.described


def test_evaluations_lie_over_each_other(trained: Project, tmp_path: Path) -> None:
    both = [replace(evaluated(trained, prompts), name=f"of {prompts}") for prompts in (18, 19)]
    page.write(both, tmp_path / "page.html")
    shown = Page((tmp_path / "page.html").read_text())
    (chart,) = [block for block in evaluation.evaluation(both).blocks if block.kind == "chart"]
    assert [each.label for each in chart.legend] == ["of 18", "of 19"]
    assert shown.tables["evaluate-written"].columns == ["figure", "of 18", "of 19"]
    captions = [table.caption for table in shown.tables.values()]
    assert len(set(captions)) == len(captions)  # they name places for screen readers
    assert any(each.startswith("all runs: ") for each in captions)


def test_several_runs_lie_over_each_other(trained: Project, tmp_path: Path) -> None:
    """The second has begun, was begun again, and has left out a step; the third is the first."""
    other = "train.loss.beta=0.3"
    (begun,) = runs(trained, other)
    draft = begun.store.draft("train", begun.steps[-1].fingerprint)
    draft.mkdir(parents=True)
    lines = [line for line in PolicyCheckpoint(trained.plan()["train"].folder).metrics if line["step"] < 4]
    lines[2] = {"step": 2, "lr": 1e-4, "skipped": 1}
    (draft / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    Happened(draft).note({"step": 3, "what": "begun again", "more": "from a checkpoint"})
    try:
        recipes = [trained.recipe, tmp_path / "other.yaml", tmp_path / "same.yaml"]
        shutil.copy(trained.recipe, recipes[1])
        recipes[1].write_text(recipes[1].read_text().replace("lr: 0.001", "lr: 0.001\n  loss: {beta: 0.3}"))
        shutil.copy(trained.recipe, recipes[2])
        shown = report(trained, tmp_path / "page.html", *recipes[1:])
    finally:
        shutil.rmtree(draft)
    assert shown.tables["train-outcome"].column("training") == ["recipe · same", "other"]
    assert "other: not finished; step 3 so far." in shown.text
    assert shown.tables["train-differences"].rows == [[("loss.beta", None), ("0.1", None), ("0.3", None)]]
    events = shown.tables["train-events"].rows
    assert [[text for text, _ in row[:3]] for row in events] == [
        ["other", "2", "step left out"], ["other", "3", "begun again"],
    ]  # fmt: skip
    assert sum("shard-" in name and name.endswith("-counts") for name in shown.tables) == 1  # which all have in common
    assert "recipe · same, training: " in "".join(value for name, value in shown.attributes if name == "aria-label")


def test_trials_of_a_grid(trained: Project, tmp_path: Path) -> None:
    shown = report(trained, tmp_path / "page.html", "--grid", "train.loss.beta=0.1,0.2")
    assert shown.tables["train-outcome"].column("training") == ["train.loss.beta=0.1"]
    assert "train.loss.beta=0.2: miss" in shown.text


def test_twenty_long_runs_stay_small(trained: Project, tmp_path: Path) -> None:
    every = []
    store = Store(tmp_path, tmp_path)
    line = PolicyCheckpoint(trained.plan()["train"].folder).metrics[-1]
    for number in range(20):
        (run,) = runs(trained, f"train.seed={number + 1}")
        draft = store.draft("train", run.steps[-1].fingerprint)
        draft.mkdir(parents=True)
        steps = [line | {"step": step, "loss": (step * 7919) % 1000 / 997} for step in range(1, 3001)]
        (draft / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in steps))
        every.append(Run(f"a run of number {number}", run.steps, store))
    text = page.html(every)
    assert len(text.encode()) < MOST
    assert "Of up to 3,000 steps the least and the greatest value of each stretch" in text


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(4, 60))
def test_a_thinned_curve_keeps_its_ends_and_its_spikes(heights: list[float], most: int) -> None:
    points = list(enumerate(heights))
    kept = thinned(points, most)
    assert len(kept) <= most
    assert list(kept) == sorted(set(kept) & set(points))
    if points:
        assert (kept[0], kept[-1]) == (points[0], points[-1])
        assert {min(y for _, y in kept), max(y for _, y in kept)} == {min(heights), max(heights)}


@given(st.integers(1, 500), st.integers(2, 50))
def test_some_rows_are_in_order_with_both_ends(count: int, most: int) -> None:
    kept = some(range(count), most)
    assert len(kept) == min(count, most)
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0, count - 1)


def test_a_report_fails_no_run(trained: Project, capfd: pytest.CaptureFixture) -> None:
    what, _ = load(trained.recipe, trained.cluster, [])
    (run,) = runs(trained)
    path = path_of([run])
    console = Console(width=200)
    write_after(what, run.store, False, console)
    assert f"The report: {path}" in capfd.readouterr().out
    shutil.rmtree(path.parent)
    path.parent.write_text("no folder")
    write_after(what, run.store, False, console)
    said = capfd.readouterr()
    assert "no report could be made (RecipeError); the run stands. Again, with the reason: raydpo report" in said.out
    assert "Traceback" in said.err
    path.parent.unlink()


def test_where_a_report_cannot_be_written_is_said(trained: Project) -> None:
    out = "/proc/raydpo.html"
    done = CliRunner().invoke(app, ["report", str(trained.recipe), "--cluster", str(trained.cluster), "--out", out])
    assert done.exit_code == 2
    assert f"the report {out} cannot be written" in done.output
    assert "--out FILE" in done.output


def test_pairs_that_are_drawn_are_the_first_ones(trained: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.view.report import data

    monkeypatch.setattr(data, "MOST_PAIRS", 5)
    (chart,) = [block for block in data.data(runs(trained)).blocks if block.kind == "chart"]
    first = len(PreferencePairs(trained.plan()["shard"].folder).read("part-00000.parquet"))
    assert chart.note == f"Of {first} of 40 pairs: the first ones, which are in the order of a hash."


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium: apt-get install chromium")
def test_a_browser_sorts_and_has_nothing_to_say(written: Path, tmp_path: Path) -> None:
    """Its console stays empty, though the policy of the page lets nothing from outside in; buttons are there."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
        "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom", written.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr
    shown = Page(done.stdout)
    assert shown.tags.count("button") == sum(len(table.columns) for table in shown.tables.values()) > 50
