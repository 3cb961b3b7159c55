"""Parts on disk: whole or named."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from stages import schema
from stages.artifacts import check_covers
from stages.errors import ContractError

TABLE = pa.table(
    [
        ["x" * 32] * 500,
        ["train"] * 500,
        [[1, 2]] * 500,
        [list(range(9))] * 500,
        [[4]] * 500,
        [[0, 3, 5, 9]] * 500,
        [[0, 1]] * 500,
        [1.0] * 500,
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
    nulls = pa.table(
        [[None], ["eval"], [[1]], [[1]], [[2]], [[0, 1]], [[0, 1]], [1], [0.5], ["s"], [0]], schema=schema.PAIRS
    )
    with pytest.raises(ContractError, match="here has 1 nulls in column pair_id"):
        schema.validate(nulls, schema.PAIRS, "here")


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([], "has no span: no token is trained"),
        ([0, 1, 2], "has 3 edges of spans, of which one has no other"),
        ([0, 3, 2, 4], "has the spans [0, 3, 2, 4], which are not sorted, apart and inside its 9 tokens"),
        ([0, 3, 3, 4], "has the spans [0, 3, 3, 4]"),
        ([4, 4], "has the spans [4, 4]"),
        ([-1, 4], "has the spans [-1, 4]"),
        ([2, 10], "has the spans [2, 10]"),
    ],
    ids=str,
)
def test_spans_that_are_none_are_refused(spans: list[int], said: str) -> None:
    rows = TABLE.slice(0, 3).to_pylist()
    rows[1]["chosen_trained"] = spans
    table = pa.Table.from_pylist(rows, schema=schema.PAIRS)
    with pytest.raises(ContractError, match=re.escape(f"here, chosen_trained: row 1 {said}")):
        schema.validate(table, schema.PAIRS, "here")


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_are_finite_and_not_negative(weight: float) -> None:
    rows = TABLE.slice(0, 3).to_pylist()
    rows[2] |= {"weight": weight, "pair_id": "y"}
    with pytest.raises(ContractError, match=f"here has the weight {weight} for pair y"):
        schema.validate(pa.Table.from_pylist(rows, schema=schema.PAIRS), schema.PAIRS, "here")


def test_log_probs_are_of_trained_tokens() -> None:
    pairs = TABLE.slice(0, 2)
    table = schema.logprobs_table(pairs, [[-1.0] * 7, [-2.0], [-1.0] * 9, [-2.0]])
    assert table["error"].to_pylist() == [None, "chosen: the engine gave 9 log-probs for 7 trained tokens"]
    assert table["ref_chosen_logps"].to_pylist() == [-7.0, None]
    check_covers(table, pairs, "here")
    whole = pairs.set_column(5, "chosen_trained", pa.array([[0, 9]] * 2, pa.list_(pa.int32())))
    with pytest.raises(ContractError, match="here has not as many chosen log-probs as trained tokens"):
        check_covers(table, whole, "here")
