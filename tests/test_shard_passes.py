"""Between the two passes of the shard stage: kills, duplicates in other tasks, any division of the work, many parts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages.digests import NOTES, sha256_of
from stages.shard.config import ShardConfig, ShardResources
from stages.shard.run import shard

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROWS = [{"prompt": f"prompt {i % 25}", "chosen": f" good {i}", "rejected": f" bad {i}"} for i in range(60)]


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> ShardConfig:
    """Three files, which are three slices; of the last one half was in the first."""
    folder = tmp_path / "triples"
    folder.mkdir()
    for name, rows in (("a", ROWS[:30]), ("b", ROWS[30:]), ("c", [*ROWS[:5], {"prompt": "p", "chosen": 1}])):
        # Blanks that no writer of ours would leave: a reject holds the row as it was read.
        lines = [json.dumps(row, separators=(" ,  ", ":")) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return ShardConfig(
        source=str(folder), tokenizer=str(tiny_model), max_length=64, num_parts=5, eval_fraction=0.3,
        max_dropped_fraction=0.5,
    )  # fmt: skip


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.parquet")}


def done(out: Path) -> Iterator[Path]:
    """What says that a slice is tokenized."""
    return (out / ".fragments").glob("*/*.json")


def test_a_run_that_was_killed_goes_on_with_the_slices_that_are_not_done(config: ShardConfig, tmp_path: Path) -> None:
    facts = shard(config, out=tmp_path / "whole", resources=ShardResources())
    shard(config, out=tmp_path / "killed", resources=ShardResources())
    first, second, third = sorted(done(tmp_path / "killed"))
    second.unlink()
    for path in second.parent.glob(f"{second.stem}-*"):
        path.write_bytes(b"torn")
    for name in ("part-00001.parquet", "part-00004.parquet", "rejects.parquet"):
        (tmp_path / "killed" / name).unlink()
    (tmp_path / "killed" / "part-00002.parquet").write_bytes(b"of an older run")
    kept = [path.stat().st_mtime_ns for path in (first, third)]
    assert shard(config, out=tmp_path / "killed", resources=ShardResources()) == facts
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert [path.stat().st_mtime_ns for path in (first, third)] == kept
    assert second.exists()


def test_a_duplicate_in_another_task_is_set_aside_as_it_was_read(config: ShardConfig, tmp_path: Path) -> None:
    facts = shard(config, out=tmp_path / "out", resources=ShardResources())
    rejects: list[dict[str, Any]] = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    lines = (tmp_path / "triples" / "c.jsonl").read_text().splitlines()
    assert facts["dropped"] == {"duplicate": 5, "malformed": 1}
    assert {row["source"] for row in rejects} == {"c.jsonl"}
    assert {row["source_row"]: row["row"] for row in rejects} == dict(enumerate(lines))
    assert all(row["detail"].startswith("the same tokens as an") for row in rejects if row["reason"] == "duplicate")


def test_any_division_of_the_work_makes_the_same_files(tiny_model: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list([*ROWS, *ROWS[10:15]]).save_to_disk(tmp_path / "set")
    config = ShardConfig(source=str(tmp_path / "set"), tokenizer=str(tiny_model), max_length=64, num_parts=4)
    facts = [
        shard(config, out=tmp_path / str(rows), resources=ShardResources(rows_per_task=rows)) for rows in (7, 1000)
    ]
    assert len(list(done(tmp_path / "7"))) == 10
    assert facts[0] == facts[1]
    assert content(tmp_path / "7") == content(tmp_path / "1000")


def test_many_parts_make_few_files_on_their_way_and_all_are_there(config: ShardConfig, tmp_path: Path) -> None:
    many = config.model_copy(update={"num_parts": 200})
    facts = shard(many, out=tmp_path / "out", resources=ShardResources())
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert len(parts) == 200
    assert len(list((tmp_path / "out" / ".fragments").glob("*/*.arrow"))) == 4  # one each, and one of what is set aside
    for index, path in enumerate(parts):
        ids = pq.read_table(path, columns=["pair_id"])["pair_id"].to_pylist()
        assert all(int(pair_id[:8], 16) % 200 == index for pair_id in ids)
    assert facts["pairs"] == sum(pq.read_metadata(path).num_rows for path in parts) == 60


def test_tasks_note_the_digests_of_their_parts(config: ShardConfig, tmp_path: Path) -> None:
    shard(config, out=tmp_path, resources=ShardResources())
    noted = [json.loads(line) for path in (tmp_path / NOTES).glob("*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(name for name, *_ in noted) == [f"part-{index:05d}.parquet" for index in range(5)]
    assert all(digest == sha256_of(tmp_path / name) for name, *_, digest in noted)
