"""Several sources: what is taken of each, and by which rule."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.errors import RecipeError
from stages.shard.config import Columns, ShardConfig
from stages.shard.reading.source import Slice
from stages.shard.reading.survey import Work, survey
from stages.shard.reading.where import compiled

ROW = {"n": 3, "x": 1.5, "text": "abc", "none": None, "flag": True, "inner": {"k": 2}, "two words": 7, "items": [1, 2]}


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ("n > 2", True), ("n - x >= 1.5 and len(text) < 4", True), ("n % 2 == 1", True), ("-n < 0", True),
        ("2 < n < 4", True), ("2 < n < 3", False), ("not flag", False), ("flag", True), ("~flag | (n == 3)", True),
        ("text in ['abc', 'd']", True), ("'b' in text", True), ("n not in (1, 2)", True), ("2 in items", True),
        ("none is None", True), ("none is null", True), ("n is not null", True), ("is_null(none)", True),
        ("is_valid(none)", False), ("inner.k == 2", True), ("field('two words') == 7", True),
        ("lower('ABC') == text", True), ("starts_with(text, 'ab')", True), ("abs(-n) == 3", True),
        # Null: where a column is, or is not of the kind; as Kleene has it in `and` and `or`.
        ("none > 1", None), ("missing == 1", None), ("text > 1", None), ("none > 1 or n == 3", True),
        ("none > 1 and n == 3", None), ("none > 1 and n == 4", False), ("not (none > 1)", None), ("n / 0 > 1", None),
        ("n", None), ("inner.z == 1", None), ("len(n) > 1", None), ("1 < none < 5", None),
    ],
)  # fmt: skip
def test_an_expression_has_pyarrow_s_logic(where: str, holds: bool | None) -> None:
    assert compiled(where).of(ROW) is holds


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("n >", "is no expression: invalid syntax"),
        ("__import__('os').system('x')", "cannot stand in it"),
        ("n.__class__()", "cannot stand in it"),
        ("[n for n in items]", "cannot stand in it"),
        ("lambda: 1", "cannot stand in it"),
        ("n := 1", "is no expression"),
        ("n ** 9", "cannot stand in it"),
        ("n is 5", "`is` compares with null alone"),
        ("(" * 2000 + "n" + ")" * 2000, "is no expression"),
        ("f'{n}'", "cannot stand in it"),
        ("eval(n)", "cannot stand in it"),
        ("len(n, 2) > 1", "cannot stand in it"),
        ("starts_with(n)", "cannot stand in it"),
        ("b'x' == n", "cannot stand in it"),
    ],
)
def test_what_is_no_expression_is_told(where: str, message: str) -> None:
    with pytest.raises(ValidationError, match="where") as raised:
        ShardConfig(source="s", tokenizer="t", where=where)
    assert message in str(raised.value)
    assert "It is made of columns" in str(raised.value)


@given(st.text(st.sampled_from("nx.+-*/%()[]<>=!'\",&|~ 019andornotisinull#\\\n"), max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        where = compiled(text)
    except ValueError:
        return
    assert where.of(ROW) in (True, False, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """100 rows, as lines and as Parquet; and a smaller set of other columns."""
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b", "gap": i if i % 10 else None} for i in range(100)]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet", row_group_size=30)
    (tmp_path / "small.jsonl").write_text("".join(json.dumps({"q": f"s{i}"}) + "\n" for i in range(20)))
    return tmp_path


def mixed(folder: Path, *sources: dict[str, Any], slice_bytes: int = 1 << 20, **fields: Any) -> Work:
    several = [each | {"source": str(folder / each["source"])} for each in sources]
    config = ShardConfig(sources=several, tokenizer="t", **fields)
    return survey(config, 7, slice_bytes=slice_bytes)


def taken(work: Work) -> list[tuple[str, int]]:
    return [(piece.name, number) for piece in work.slices for number, _ in piece.rows()]


@pytest.mark.parametrize("source", ["lines.jsonl", "table.parquet"])
def test_more_contains_less_and_counts_are_exact(folder: Path, source: str) -> None:
    before: set[tuple[str, int]] = set()
    for take in (1, 7, 0.1, 20, 0.5, 77, 99, 1.0):
        work = mixed(folder, {"source": source, "take": take, "name": "set"})
        found = taken(work)
        assert work.taken == [len(found)]
        assert work.rows == [100]
        assert len(found) == take if isinstance(take, int) else abs(len(found) - 100 * take) < 20
        assert before <= set(found)
        before = set(found)
        for slice_bytes in (1, 300):
            assert (
                taken(mixed(folder, {"source": source, "take": take, "name": "set"}, slice_bytes=slice_bytes)) == found
            )
    assert len(before) == 100
    other = taken(mixed(folder, {"source": source, "take": 20, "name": "other"}))
    assert {number for _, number in other} != {
        number for _, number in taken(mixed(folder, {"source": source, "take": 20}))
    }


def test_where_comes_before_take(folder: Path) -> None:
    for source in ("lines.jsonl", "table.parquet"):
        work = mixed(folder, {"source": source, "where": "gap > 50"})
        assert [number for _, number in taken(work)] == [i for i in range(51, 100) if i % 10]
        assert (work.rows, work.taken) == ([100], [45])
        assert work.notices == [
            f"where: gap > 50 has no value in 10 rows of {source}, where a column is null or of another type; they are "
            "not taken"
        ]
        some = mixed(folder, {"source": source, "where": "gap > 50", "take": 12})
        assert some.taken == [12]
        assert set(taken(some)) <= set(taken(work))
        more = mixed(folder, {"source": source, "where": "gap > 50", "take": 60})
        assert more.taken == [45]
        assert more.notices[1] == f"{source} has 45 rows to take, and take asks for 60: all are taken"


def test_a_broken_row_passes_to_be_set_aside(folder: Path) -> None:
    with (folder / "lines.jsonl").open("a") as file:
        file.write("\n{broken\n[1]\n")
    assert [number for _, number in taken(mixed(folder, {"source": "lines.jsonl", "where": "gap > 98"}))] == [
        99,
        100,
        101,
    ]


def test_what_is_not_there_is_told(folder: Path) -> None:
    for source in ("lines.jsonl", "table.parquet"):
        with pytest.raises(
            RecipeError, match=r"names the column 'gp', which .* does not have; it has 'prompt', 'chosen'"
        ):
            mixed(folder, {"source": source, "where": "gp > 1"})
        with pytest.raises(RecipeError, match=r"of the 100 rows of .* none is taken \(where: gap > 1000\)"):
            mixed(folder, {"source": source, "where": "gap > 1000"})


def test_sources_keep_their_order_their_names_and_their_weights(folder: Path) -> None:
    work = mixed(
        folder,
        {"source": "small.jsonl", "weight": 0.5},
        {"source": "lines.jsonl", "name": "big", "take": 3},
        {"source": "*.parquet", "name": "tables", "take": 2},
        limit=10,
    )
    rows = [(piece, number) for piece in work.slices for number, _ in piece.rows()]
    assert [piece.name for piece, _ in rows] == ["small.jsonl"] * 10 + ["big"] * 3 + ["tables/table.parquet"] * 2
    assert [piece.which for piece, _ in rows] == [0] * 10 + [1] * 3 + [2] * 2
    assert [piece.source.weight for piece, _ in rows] == [0.5] * 10 + [1.0] * 5
    assert (work.rows, work.taken) == ([10, 10, 10], [10, 3, 2])
    assert max(number for _, number in rows) < 10
    piece = work.slices[-1]
    assert Slice(**pa.Table.from_pylist([piece.as_row()]).to_pylist()[0]) == piece  # as it comes through Ray


def test_parts_follow_from_the_rows_that_are_taken() -> None:
    counts = {0: 1, 1: 1, 1000: 1, 1001: 2, 200_000: 200, 10_000_000: 10_000}
    assert {rows: Work([], [rows], [rows], []).num_parts for rows in counts} == counts


def test_a_source_says_what_the_whole_does_not() -> None:
    config = ShardConfig(
        sources=[{"source": "a/b.jsonl"}, {"source": "org/set@main", "split": "x", "columns": {"chosen": "mine"}}],
        eval=[{"source": "c.jsonl", "name": "held"}],
        tokenizer="t", split="theirs", columns={"chosen": "ours"}, where="n > 1", shape="hh",
    )  # fmt: skip
    first, second, held = config.all_sources
    assert [each.label for each in config.all_sources] == ["b.jsonl", "set", "held"]
    assert (first.split, second.split, held.split) == ("theirs", "x", "theirs")
    assert (first.columns, second.columns) == (Columns(chosen="ours"), Columns(chosen="mine"))
    assert (first.where, held.where) == ("n > 1", None)
    assert (config.num_trained, held.shape) == (2, "hh")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"source\n +Field required"),
        ({"source": ["a", "b"]}, r"a source is one name\. For the first one at hand .*first_of: \[\.\.\], .*sources: "),
        ({"source": "a", "sources": [{"source": "b"}]}, "source and sources are both given"),
        ({"sources": [{"source": "x/a"}, {"source": "y/a"}]}, r"2 sources are called a\. Give each a name"),
        ({"source": "a", "eval": [{"source": "b"}]}, r"shard\.eval: b has no name"),
        ({"sources": [{"source": "b", "name": "a/b"}]}, "String should match pattern"),
        ({"sources": [{"source": "b", "take": 0}]}, "greater than"),
        ({"sources": [{"source": "b", "take": 1.5}]}, "less than or equal to 1"),
        ({"sources": [{"source": "b", "weight": 0}]}, "greater than 0"),
    ],
)
def test_what_does_not_go_together_is_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ShardConfig(tokenizer="t", **fields)
