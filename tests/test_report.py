"""The data report: of hand-made parts against what is plain to see, and however they are divided."""

import itertools
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import schema
from stages.errors import RecipeError
from stages.shard import hashes
from stages.shard.config import ShardConfig
from stages.shard.report import alike
from stages.shard.report.contamination import Evaluations
from stages.shard.report.figures import Figures
from stages.shard.report.report import note_part, report_of
from stages.shard.triple import Labelled, Triple

CUT = [("cut_prompt", pa.bool_()), ("cut_completions", pa.int64())]
COLUMNS = pa.schema([*schema.PAIRS, *CUT])
LABELLED = pa.schema([*schema.LABELLED, *CUT])
CONFIG = ShardConfig(source="s", tokenizer="t", max_length=64)
NO_REJECTS = schema.REJECTS.empty_table()


def pair(prompt: list[int], chosen: list[int], rejected: list[int], **fields: Any) -> dict[str, Any]:
    ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    own = {"split": "train", "source": "a.jsonl", "source_row": 0, "cut_prompt": False, "cut_completions": 0}
    return {"pair_id": "0" * 32} | own | ids | fields


def report(parts: list[list[dict[str, Any]]], out: Path, columns: pa.Schema = COLUMNS) -> dict[str, Any]:
    out.mkdir()
    for index, rows in enumerate(parts):
        table = pa.Table.from_pylist([row | {"source_row": row["source_row"]} for row in rows], schema=columns)
        note_part(table, NO_REJECTS, out / f"part-{index:05d}.parquet", CONFIG)
    return report_of(out)


def test_lengths_cuts_and_bias(tmp_path: Path) -> None:
    rows = [pair([1] * (i + 1), [2] * 10, [3] * 5, margin=1.0, source_row=i) for i in range(18)]
    rows += [pair([1] * 20, [2] * 44, [3] * 50, margin=-2.0, cut_completions=1, cut_prompt=True, split="eval")]
    rows += [pair([1] * 20, [2] * 4, [3] * 44, margin=0.5, cut_completions=1, source="b.jsonl", source_row=1)]
    told = report([rows[:7], rows[7:]], tmp_path / "out")
    assert told["lengths"] == {
        "prompt": {"min": 1, "median": 10, "p95": 20, "max": 20, "cut": 1},
        "chosen": {"min": 4, "median": 10, "p95": 10, "max": 44, "cut": 1},
        "rejected": {"min": 5, "median": 5, "p95": 44, "max": 50, "cut": 1},
    }
    difference, margin = [5] * 18 + [-6, -40], [1.0] * 18 + [-2.0, 0.5]
    assert told["length_bias"] == {
        "longer_chosen": 0.9, "same_length": 0.0, "mean_difference": sum(difference) / 20,
        "correlation_with_margin": pytest.approx(np.corrcoef(difference, margin)[0, 1], abs=1e-4),
    }  # fmt: skip
    assert told["sources"] == {
        "a.jsonl": {"pairs": 19, "train": 18, "held_out": 1}, "b.jsonl": {"pairs": 1, "train": 1},
    }  # fmt: skip


def test_of_labelled_completions(tmp_path: Path) -> None:
    def row(completion: list[int], label: bool, number: int) -> dict[str, Any]:
        ids = {"prompt_ids": [1, 2], "completion_ids": completion, "mismatched_ids": [9], "label": label}
        return {"pair_id": "0", "split": "train", "source": "a", "source_row": number} | ids | {
            "cut_prompt": False, "cut_completions": int(not label)
        }  # fmt: skip

    told = report([[row([3], True, 0), row([4] * 3, False, 1)], [row([3], False, 2)]], tmp_path / "out", LABELLED)
    assert told["lengths"]["desirable"] == {"min": 1, "median": 1, "p95": 1, "max": 1, "cut": 0}
    assert told["lengths"]["undesirable"] == {"min": 1, "median": 1, "p95": 3, "max": 3, "cut": 2}
    assert told["alike"]["contradicting"] == 1  # [3], once desirable and once not
    assert "length_bias" not in told


def test_pairs_that_speak_against_each_other(tmp_path: Path) -> None:
    prompt, other = [1, 2, 3], [1, 2]
    rows = [
        pair(prompt, [5], [6], source_row=0),
        pair(prompt, [6], [5], source_row=1),  # swapped, and so both completions contradict
        pair(prompt, [7], [8], source_row=2),
        pair(prompt, [8], [9], source_row=2),  # of one ranked row: the middle one is both, as it should be
        pair(other, [6], [5], source_row=3),  # another prompt
        pair(other, [4], [6], source_row=4),  # contradicts the row before about [6]
    ]
    for name, parts in (("one", [rows]), ("many", [[row] for row in reversed(rows)])):
        found = report(parts, tmp_path / name)["alike"]
        assert (found["prompts"], found["swapped"], found["contradicting"]) == (2, 1, 3), name


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_merging_in_ranges_changes_nothing(seed: int, num_parts: int) -> None:
    rng = random.Random(seed)
    rows = []
    for _ in range(30):
        prompt = rng.randrange(3)
        split = "eval" if prompt == 0 else "train"
        chosen, rejected = rng.sample(range(3), 2)
        rows.append(pair([prompt], [chosen], [rejected], source_row=rng.randrange(5), split=split))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for at_once, parts in ((2**21, [rows]), (4, [rows[i::num_parts] for i in range(num_parts)])):
            before, alike.AT_ONCE = alike.AT_ONCE, at_once
            try:
                found.append(report(parts, Path(folder) / str(at_once)))
            finally:
                alike.AT_ONCE = before
    assert found[0] == found[1]


def test_near_duplicates_between_training_and_held_out_prompts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    template = rng.integers(1000, 2000, 80).tolist()  # the same in all prompts: no reason to call them alike
    train = [template + rng.integers(0, 1000, 60).tolist() for _ in range(200)]
    held_out = [template + rng.integers(0, 1000, 60).tolist() for _ in range(40)]
    twins = [[*prompt[:-1], 7] for prompt in train[:12]]  # but for their last token
    rows = [pair(p, [1], [2], split="train") for p in train] + [pair(p, [1], [2], split="eval") for p in held_out]
    rows += [pair(p, [1], [2], split="eval/web") for p in twins]
    rng.shuffle(rows)
    found = report([rows[:120], rows[120:]], tmp_path / "out")["alike"]
    assert found["prompts"] == 252
    assert 11 <= found["near_duplicates"] <= 12


def test_nothing_held_out_is_compared_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    table = pa.Table.from_pylist([pair([1], [2], [3])], schema=COLUMNS)
    note_part(
        table, NO_REJECTS, tmp_path / "out" / "part-00000.parquet", CONFIG.model_copy(update={"eval_fraction": 0.0})
    )
    assert "near_duplicates" not in report_of(tmp_path / "out")["alike"]


def test_an_empty_part_and_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert report_of(tmp_path / "none")["alike"]["prompts"] == 0
    assert report([[]], tmp_path / "empty")["alike"] == {
        "duplicates": 0, "prompts": 0, "swapped": 0, "contradicting": 0, "near_duplicates": 0
    }  # fmt: skip


def test_of_very_many_sources_the_largest_are_named() -> None:
    rows = [pair([1], [2], [3], source=f"{i:03}.jsonl") for i in range(60) for _ in range(1 + (i == 59))]
    told = Figures.of(pa.Table.from_pylist(rows, schema=COLUMNS), NO_REJECTS, 64).facts()["sources"]
    assert len(told) == 51
    assert told["059.jsonl"] == {"pairs": 2, "train": 2}
    assert told["10 others"] == {"pairs": 10, "train": 10}


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=12), st.integers(1, 4))
def test_ngrams_are_those_of_a_loop(rows: list[list[int]], n: int) -> None:
    lists = pa.chunked_array([pa.array(rows, pa.list_(pa.int32()))])
    ids, starts = hashes.flat(lists)
    found, at = hashes.of_ngrams(hashes.mixed(ids), starts, n)
    told: dict[tuple[int, ...], set[int]] = {}
    for i, row in enumerate(rows):
        grams = [tuple(row[j : j + n]) for j in range(max(len(row) - n + 1, min(len(row), 1)))]
        values = found[at[i] : at[i + 1]].tolist()
        assert len(values) == len(grams)
        for gram, value in zip(grams, values, strict=True):
            told.setdefault(gram, set()).add(value)
    assert all(len(values) == 1 for values in told.values())
    assert len(set().union(*told.values())) == len(told)
    of_rows = hashes.of_lists(lists).tolist()
    for (one, a), (other, b) in itertools.combinations(zip(rows, of_rows, strict=True), 2):
        assert (one == other) == (a == b)


QUESTION = "If a train leaves Paris at nine and travels at eighty kilometres an hour, when is it in Lyon?"


@pytest.fixture
def evaluations(tmp_path: Path) -> Evaluations:
    rows = [{"question": QUESTION, "answer": "yes"}, {"question": "What is the capital of France?", "answer": "Paris"}]
    rows += [
        {"question": f"Answer with one of the four letters A, B, C or D and with nothing else. {i}"} for i in range(11)
    ]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "other.txt").write_text("东京是日本的首都吗请回答是或者不是谢谢\n")
    return Evaluations([str(tmp_path / "exam.jsonl"), str(tmp_path / "other.txt")])


def test_rows_that_hold_an_examination(evaluations: Evaluations) -> None:
    inside = f"Please help me. {QUESTION.upper().replace(',', ' -')} Thank you."
    for row in (
        Triple(inside, "a", "b"),
        Triple("p", [{"role": "assistant", "content": [{"type": "text", "text": inside}]}], []),
        Labelled([{"role": "user", "content": inside}], "c", True),
    ):
        assert "stand in exam.jsonl: 'if a train leaves paris at nine" in (evaluations.find(row) or "")
    assert evaluations.find(Triple("What is the capital of France", "Paris", "Lyon"))  # short, and all of it
    assert "other.txt" in (evaluations.find(Triple("问题 东京是日本的首都吗请回答是或者不是", "是", "不是")) or "")


def test_rows_that_hold_none(evaluations: Evaluations) -> None:
    for prompt in (
        "What is the capital of France, and what that of Italy?",
        " ".join(QUESTION.split()[:12]),
        "yes",
        "Answer with one of the four letters A, B, C or D and with nothing else. What is art?",  # boilerplate
    ):
        assert evaluations.find(Triple(prompt, "Paris", "Lyon")) is None, prompt


def test_an_evaluation_file_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "exam.jsonl").write_text('{"answer": 3}\n')
    with pytest.raises(RecipeError, match=r"shard\.decontaminate: .*exam\.jsonl holds no text of 5 words or more"):
        Evaluations([str(tmp_path / "exam.jsonl")])
