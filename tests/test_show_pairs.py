"""`show --pairs` and `--rejects`: of files made here, and of a finished run."""

import io
import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import Project, make_project, make_tokenizer
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.store import Store
from pipeline.view.pairs import LEGEND, print_pairs, print_rejects, read_pairs, read_rejects
from stages import schema
from stages.artifacts import PreferencePairs
from stages.errors import MissingArtifact
from stages.shard.tokenization import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return str(folder)


def artifact(folder: Path, rows: list[dict[str, Any]], columns: pa.Schema) -> PreferencePairs:
    whole = {f"{side}_trained": side for side in schema.sides(columns.names)}
    rows = [
        {name: [0, len(row[f"{side}_ids"])] for name, side in whole.items()} | {"weight": 1.0} | row for row in rows
    ]
    schema.write_part(pa.Table.from_pylist(rows, schema=columns), folder / "part-00000.parquet")
    return PreferencePairs(folder)


def printed(show: Any, *arguments: Any, width: int = 80) -> str:
    text = io.StringIO()
    show(*arguments, Console(file=text, width=width))
    return text.getvalue()


def test_special_tokens_newlines_and_what_is_trained(tmp_path: Path, tokenizer: str) -> None:
    loaded = load_tokenizer(tokenizer)
    prompt = loaded.encode("<|im_start|>user\nHöw?<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    chosen, rejected = (loaded.encode(text, add_special_tokens=False) for text in (" gut[1] 好<|im_end|>", "no"))
    row = {"pair_id": "f" * 32, "split": "eval", "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    row |= {"margin": 1.5, "source": "a.jsonl", "source_row": 7}
    (pair,) = read_pairs(artifact(tmp_path, [row], schema.PAIRS), 5, tokenizer)
    texts = {name: "".join(run["text"] for run in pair[name]) for name in ("prompt", "chosen", "rejected")}
    assert texts["prompt"] == "<|im_start|>user\nHöw?<|im_end|>\n<|im_start|>assistant\n"
    assert texts["chosen"] == " gut[1] 好<|im_end|>"
    assert [run["trained"] for run in pair["chosen"]] == [True, True]
    assert [run["special"] for run in pair["chosen"]] == [False, True]

    shown = printed(print_pairs, [pair])
    assert shown.startswith(LEGEND)
    assert f"a.jsonl row 7  eval  margin 1.5  {'f' * 32}" in shown
    assert "prompt  ⟪<|im_start|>⟫user⏎\nHöw?⟪<|im_end|>⟫⏎\n⟪<|im_start|>⟫assistant⏎\n" in shown
    assert "chosen  ⟦ gut[1] 好⟪<|im_end|>⟫⟧\n" in shown
    assert "rejected  ⟦no⟧\n" in shown


def test_turns_inside_a_completion_are_outside_the_brackets(tmp_path: Path, tokenizer: str) -> None:
    loaded = load_tokenizer(tokenizer)
    pieces = [
        loaded.encode(text, add_special_tokens=False) for text in ("one<|im_end|>", "\nuser two", "three<|im_end|>")
    ]
    chosen, (a, b, c) = [*chain(*pieces)], map(len, pieces)
    row = {"pair_id": "0", "split": "train", "prompt_ids": [5], "chosen_ids": chosen, "rejected_ids": [6, 7]}
    row |= {"source": "a", "source_row": 0, "chosen_trained": [0, a, a + b, a + b + c], "rejected_trained": [1, 2]}
    (pair,) = read_pairs(artifact(tmp_path, [row], schema.PAIRS), 5, tokenizer)
    shown = printed(print_pairs, [pair])
    assert "chosen  ⟦one⟪<|im_end|>⟫⟧⏎\nuser two⟦three⟪<|im_end|>⟫⟧\n" in shown


def test_labelled_completions_have_their_label(tmp_path: Path, tokenizer: str) -> None:
    row = {"pair_id": "0", "split": "train", "prompt_ids": [5], "completion_ids": [6], "mismatched_ids": [7]}
    row |= {"label": False, "source": "a", "source_row": 0}
    pairs = read_pairs(artifact(tmp_path, [row], schema.LABELLED), 5, tokenizer)
    shown = printed(print_pairs, pairs)
    assert "a row 0  train  undesirable  0" in shown
    assert "completion  ⟦" in shown
    assert "mismatched  ⟦" in shown


def test_rejects_of_every_reason_cut_to_the_terminal(tmp_path: Path) -> None:
    rows = [
        {"source": "a", "source_row": i, "reason": reason, "detail": f"because {i}", "row": f"row {i}\n" + "x" * 500}
        for i, reason in enumerate(["empty"] * 5 + ["equal"] + ["malformed"] * 2)
    ]
    table = pa.Table.from_pylist(rows, schema=schema.REJECTS)
    schema.write_part(table, tmp_path / "rejects.parquet")
    rejects = read_rejects(PreferencePairs(tmp_path), 2)
    assert rejects["reasons"] == {"empty": 5, "malformed": 2, "equal": 1}
    assert [row["source_row"] for row in rejects["rows"]] == [0, 5, 6]
    assert len(read_rejects(PreferencePairs(tmp_path), 9)["rows"]) == 8
    shown = printed(print_rejects, rejects, width=40)
    assert "rows set aside: 5 empty, 2 malformed, 1 equal" in shown
    assert "a row 5  equal: because 5" in shown
    assert "row 0⏎xxx" in shown
    assert max(map(len, shown.splitlines())) == 80
    with pytest.raises(MissingArtifact, match="holds no rejects"):
        read_rejects(PreferencePairs(tmp_path / "none"), 2)


def test_rejects_of_a_stage_that_stopped_are_shown_though_there_are_no_pairs(tmp_path: Path, tiny_model: Path) -> None:
    project = make_project(tmp_path, tiny_model)

    def show(*arguments: str) -> Any:
        words = ["show", str(project.recipe), "--cluster", str(project.cluster), "--pairs", "2", *arguments]
        return CliRunner().invoke(app, words, env={"COLUMNS": "200"})

    nothing = show("--rejects")
    assert (nothing.exit_code, nothing.stdout) == (2, "")
    step, store = project.plan()["shard"], Store.open(str(tmp_path / "runs"), str(tmp_path))
    draft = store.draft("shard", step.fingerprint)
    draft.mkdir(parents=True)
    row = {"source": "a", "source_row": 3, "reason": "empty", "detail": "because", "row": "{}"}
    schema.write_part(pa.Table.from_pylist([row], schema=schema.REJECTS), draft / "rejects.parquet")
    told = show("--rejects")
    assert "rows set aside: 1 empty" in told.stdout
    for done in (nothing, told, show()):
        assert done.exit_code == 2
        assert "there are no pairs yet: shard is a" in done.stderr
    assert json.loads(show("--rejects", "--json").stdout) == {"rejects": {"reasons": {"empty": 1}, "rows": [row]}}


def test_what_is_shown_is_json_too(tmp_path: Path, tokenizer: str) -> None:
    from pipeline.view.pairs import as_json

    row = {"pair_id": "0", "split": "train", "prompt_ids": [5], "chosen_ids": [6], "rejected_ids": [7]}
    row |= {"source": "a", "source_row": 0}
    pairs = read_pairs(artifact(tmp_path, [row], schema.PAIRS), 5, tokenizer)
    (told,) = json.loads(as_json(pairs, None))["pairs"]
    assert told["chosen"] == [{"text": load_tokenizer(tokenizer).decode([6]), "trained": True, "special": False}]


def test_a_finished_run_is_shown(trained: Project) -> None:
    def show(*arguments: str) -> str:
        words = ["show", str(trained.recipe), "--cluster", str(trained.cluster), *arguments]
        done = CliRunner().invoke(app, words, env={"COLUMNS": "200"}, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert "⟪<|im_start|>⟫user⏎\nHow was the" in show("--pairs", "2")
    told = json.loads(show("--pairs", "2", "--rejects", "--json"))
    assert len(told["pairs"]) == 2
    assert told["rejects"] == {"reasons": {}, "rows": []}

    facts = show()
    assert re.search(r"report\.lengths\.prompt +. min \d+ median \d+ p95 \d+ max \d+ cut 0", facts), facts
    assert re.search(r"reference\.per_token +. chosen -", facts), facts
    assert len(re.findall(r"per_token -[\d.]+ side (?:chosen|rejected) pair_id", facts)) == 10, facts
    plain = json.loads(show("--json"))
    shard = plain["shard"]["facts"]
    counts = {"pairs": 40, "train": shard["train"], "held_out": shard["eval"]}
    assert shard["report"]["sources"] == {"triples.jsonl": counts}
    assert 0 < plain["score"]["facts"]["reference"]["accuracy"] < 1
