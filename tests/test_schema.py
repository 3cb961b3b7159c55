"""Parts on disk: whole or named."""

from pathlib import Path

import pyarrow as pa
import pytest

from stages import schema
from stages.errors import ContractError

TABLE = pa.table(
    [
        ["x" * 32] * 500,
        ["train"] * 500,
        [[1, 2]] * 500,
        [list(range(9))] * 500,
        [[4]] * 500,
        [None] * 500,
        ["s"] * 500,
        range(500),
    ],
    schema=schema.PAIRS,
)


def test_a_part_reads_back(tmp_path: Path) -> None:
    schema.write_part(TABLE, tmp_path / "part.parquet")
    assert schema.read_part(tmp_path / "part.parquet", (schema.PAIRS,), "") == TABLE
    assert [path.name for path in tmp_path.iterdir()] == ["part.parquet"]


def test_a_cut_part_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    schema.write_part(TABLE, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ContractError, match=r"part\.parquet cannot be read as Parquet: (?s:.*)\. Mend it"):
        schema.read_part(path, (schema.PAIRS,), "Mend it")


def test_no_flipped_bit_changes_a_value_unseen(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    schema.write_part(TABLE, path)
    content, seen = path.read_bytes(), 0
    for position in range(0, len(content), 31):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        try:
            assert schema.read_part(path, (schema.PAIRS,), "") == TABLE  # it hit a byte that says nothing of values
        except ContractError:
            seen += 1
    assert seen > len(content) / 31 / 2


def test_other_columns_and_nulls_are_refused() -> None:
    with pytest.raises(ContractError, match=r"here has the columns \[pair_id: string, .*\], not \["):
        schema.validate(TABLE.drop_columns(["split"]), schema.PAIRS, "here")
    nulls = pa.table([[None], ["eval"], [[1]], [[1]], [[2]], [0.5], ["s"], [0]], schema=schema.PAIRS)
    with pytest.raises(ContractError, match="here has 1 nulls in column pair_id"):
        schema.validate(nulls, schema.PAIRS, "here")
