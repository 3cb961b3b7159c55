"""Rows between the two passes of the shard stage: what goes into cells comes out of them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.shard.batch import Raw, batches
from stages.shard.parts.fragment import Fragments, num_cells, parts_of, write_fragment

SCHEMA = pa.schema([("part", pa.int64()), ("name", pa.string()), ("text", pa.large_string())])


@given(st.integers(1, 20_000))
def test_cells_are_all_parts_in_order(num_parts: int) -> None:
    parts = [part for cell in range(num_cells(num_parts)) for part in parts_of(cell, num_parts)]
    assert parts == list(range(num_parts))


@pytest.mark.parametrize("num_parts", [1, 3, 40, 1000])
def test_rows_of_a_cell_in_the_order_of_the_fragments(num_parts: int, tmp_path: Path) -> None:
    chance = np.random.default_rng(num_parts)
    parts = [chance.integers(0, num_parts, rows) for rows in (50, 1, 30)]
    paths = [tmp_path / f"{i}.arrow" for i in range(3)]
    for i, path in enumerate(paths):
        names = [f"{i}-{row}" for row in range(len(parts[i]))]
        table = pa.table({"part": parts[i], "name": names, "text": [f"text of {n}" for n in names]}, schema=SCHEMA)
        assert write_fragment(table, path, num_parts).sum() == pytest.approx(table.nbytes)
    fragments, seen = Fragments(paths, SCHEMA), 0
    for cell in range(num_cells(num_parts)):
        rows = fragments.read(cell, ["part", "name"])
        inside = parts_of(cell, num_parts)
        assert rows["name"].to_pylist() == [
            f"{i}-{row}" for i in range(3) for row in range(len(parts[i])) if parts[i][row] in inside
        ]
        assert set(rows["part"].to_pylist()) <= set(inside)
        some = rows.take(pa.array(chance.permutation(len(rows))[: len(rows) // 2 + 1]))
        assert fragments.pick(cell, some, "text").to_pylist() == [
            f"text of {name}" for name in some["name"].to_pylist()
        ]
        seen += len(rows)
    assert seen == 81


def test_no_fragments() -> None:
    rows = Fragments([], SCHEMA).read(0, ["part", "name"])
    assert rows.column_names == ["part", "name", "fragment", "place"]
    assert not len(rows)
    assert not len(Fragments([], SCHEMA).pick(0, rows, "text"))


_TEXT = "x" * 4_000_000


@given(st.lists(st.integers(1, 40), max_size=20))
@settings(deadline=None)
def test_batches_hold_so_much_text_and_all_rows_in_order(lengths: list[int]) -> None:
    rows = [Raw("f", number, _TEXT[: 100_000 * length], 0) for number, length in enumerate(lengths)]
    made = list(batches(rows))
    assert [row for batch in made for row in batch] == rows
    assert all(len(batch) == 1 or sum(len(row.row) for row in batch) <= 2_000_000 for batch in made)
    assert all(made)
