"""Rows from files and datasets, in order."""

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.errors import RecipeError
from stages.shard.config import ShardConfig
from stages.shard.source import slices

ROWS = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(7)]


def read(source: Path | str, **fields: object) -> list[str]:
    config = ShardConfig(source=str(source), tokenizer="x", **fields)
    return [json.loads(text)["prompt"] for piece in slices(config, rows_per_task=3) for _, text in piece.rows()]


def jsonl(path: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


ALL = [f"p{i}" for i in range(7)]


def test_one_file_of_each_kind(tmp_path: Path) -> None:
    assert read(jsonl(tmp_path / "a.jsonl", ROWS)) == ALL
    assert read(jsonl(tmp_path / "a.jsonl.gz", ROWS)) == ALL
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=2)
    assert read(tmp_path / "a.parquet") == ALL
    assert read(tmp_path / "a.parquet", limit=3) == ALL[:3]


def test_a_datasets_folder(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one") == ALL
    assert read(tmp_path / "one", limit=4) == ALL[:4]
    datasets.DatasetDict({"train_prefs": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "splits", split="train_prefs") == ALL
    with pytest.raises(RecipeError, match=r"no split 'train'; it has train_prefs\. Set shard\.split"):
        read(tmp_path / "splits")


def test_folders_and_patterns_in_order_with_a_limit_over_files(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", ROWS[4:])
    jsonl(tmp_path / "a.jsonl", ROWS[:4])
    (tmp_path / "notes.txt").write_text("not data")
    assert read(tmp_path) == ALL
    assert read(tmp_path / "*.jsonl") == ALL
    assert read(tmp_path, limit=5) == ALL[:5]


def test_row_numbers_count_blank_and_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{broken\n{"a": 2}\n')
    (piece,) = slices(ShardConfig(source=str(path), tokenizer="x"), 10)
    assert list(piece.rows()) == [(0, '{"a": 1}'), (2, "{broken"), (3, '{"a": 2}')]


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(RecipeError, match=r"a\.csv is none of \.jsonl, \.jsonl\.gz, \.parquet"):
        read(tmp_path / "a.csv")
