"""The shard stage on Ray, from a file of good and bad rows to parts and rejects."""

import gzip
import json
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from stages import schema
from stages.artifacts import PreferencePairs
from stages.errors import ContractError, RecipeError
from stages.shard.config import Columns, ShardConfig, ShardResources
from stages.shard.parts.mismatched import next_other, with_mismatched
from stages.shard.run import shard
from stages.shard.tokenization import Completion, hash_of, load_tokenizer

pytestmark = pytest.mark.usefixtures("ray_cluster")

GOOD = [{"prompt": f"prompt {i % 15}", "chosen": f" good {i}", "rejected": f" bad {i}"} for i in range(30)]
BAD = [
    '{"prompt": "a", "chosen": "b", ',  # row 30
    '{"prompt": "a", "chosen": "", "rejected": "b"}',
    '{"prompt": "a", "chosen": "b", "rejected": "b"}',
    json.dumps(GOOD[4]),
]


def write(path: Path, rows: list[str]) -> str:
    path.write_text("\n".join(rows) + "\n")
    return str(path)


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> ShardConfig:
    source = write(tmp_path / "triples.jsonl", [*map(json.dumps, GOOD), *BAD])
    return ShardConfig(
        source=source,
        tokenizer=str(tiny_model),
        max_length=64,
        num_parts=3,
        eval_fraction=0.5,
        max_dropped_fraction=0.2,
    )


def rows_of(out: Path) -> list[dict[str, Any]]:
    pairs = PreferencePairs(out)
    return pa.concat_tables([pairs.read(part) for part in pairs.parts]).to_pylist()


def test_parts_and_rejects(config: ShardConfig, tmp_path: Path) -> None:
    facts = shard(config, out=tmp_path / "out", resources=ShardResources())
    pairs = rows_of(tmp_path / "out")
    assert len(PreferencePairs(tmp_path / "out").parts) == 3
    assert sorted(row["source_row"] for row in pairs) == list(range(30))
    assert len({row["pair_id"] for row in pairs}) == 30
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    reasons = {row["source_row"]: row["reason"] for row in rejects}
    assert reasons == {30: "malformed", 31: "empty", 32: "equal", 33: "duplicate"}
    assert [row["row"] for row in sorted(rejects, key=lambda row: row["source_row"])] == BAD
    assert all(row["detail"] and row["source"] == "triples.jsonl" for row in rejects)
    assert facts["dropped"] == {"duplicate": 1, "empty": 1, "equal": 1, "malformed": 1}
    assert facts["control_tokens"] == 0
    assert 0 < facts["largest_id"] < 320
    assert (facts["rows"], facts["pairs"], facts["shape"]) == (34, 30, "explicit")
    longest = max(len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in pairs)
    tokens = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in pairs)
    assert (facts["longest"], facts["tokens"]) == (longest, tokens)

    # A prompt is on one side only, and both sides have some.
    sides: dict[tuple[int, ...], set[str]] = {}
    for row in pairs:
        sides.setdefault(tuple(row["prompt_ids"]), set()).add(row["split"])
    assert len(sides) == 15
    assert sorted(map(len, sides.values())) == [1] * 15
    assert {row["split"] for row in pairs} == {"train", "eval"}


def test_the_files_do_not_depend_on_the_work_s_division_or_on_what_was_there(
    config: ShardConfig, tmp_path: Path
) -> None:
    reports = []
    for name, rows_per_task in (("whole", 1000), ("small", 4)):
        facts = shard(config, out=tmp_path / name, resources=ShardResources(rows_per_task=rows_per_task))
        reports.append(facts["report"])
    assert reports[0] == reports[1]
    assert reports[0]["sources"] == {"triples.jsonl": {"pairs": 30, "train": ANY, "held_out": ANY, "set_aside": 4}}
    assert (reports[0]["alike"]["duplicates"], reports[0]["alike"]["prompts"]) == (1, 15)
    files = sorted(path.name for path in (tmp_path / "whole").glob("*.parquet"))
    assert len(files) == 4
    (tmp_path / "small" / "part-00001.parquet").unlink()  # as after a kill
    shard(config, out=tmp_path / "small", resources=ShardResources())
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "small" / name).read_bytes(), name


def test_twins_of_a_file_have_the_same_pair_ids(config: ShardConfig, tmp_path: Path) -> None:
    """In one run: of the rows of all twins one makes the pair, and the others are set aside with its id."""
    rows = [json.dumps(row | {"prompt": f"é {i} \U0001f600"}, ensure_ascii=False) for i, row in enumerate(GOOD[:12])]
    plain = "".join(row + "\n" for row in rows).encode()
    zstd = pa.BufferOutputStream()
    with pa.CompressedOutputStream(zstd, "zstd") as stream:
        stream.write(plain)
    twins = {
        "mark.jsonl": b"\xef\xbb\xbf" + plain,
        "crlf.jsonl": plain.replace(b"\n", b"\r\n"),
        "packed.jsonl.gz": gzip.compress(plain),
        "packed.jsonl.zst": zstd.getvalue().to_pybytes(),
        "array.json": json.dumps(list(map(json.loads, rows)), indent=1).encode(),
        "dense.json": json.dumps(list(map(json.loads, rows))).encode(),
    }
    for name, content in ({"plain.jsonl": plain} | twins).items():
        (tmp_path / name).write_bytes(content)
    sources = [{"source": str(tmp_path / name)} for name in ("plain.jsonl", *twins)]
    fields = config.model_dump(exclude={"source", "sources"}) | {"max_dropped_fraction": 1.0}
    shard(ShardConfig(**fields, sources=sources), out=tmp_path / "out", resources=ShardResources())
    found: dict[str, dict[int, str]] = {name: {} for name in ("plain.jsonl", *twins)}
    for row in rows_of(tmp_path / "out"):
        found[row["source"]][row["source_row"]] = row["pair_id"]
    for row in pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist():
        assert row["reason"] == "duplicate"
        found[row["source"]][row["source_row"]] = row["detail"].rpartition("pair_id ")[2]
    plain_ids = found.pop("plain.jsonl")
    assert sorted(plain_ids) == list(range(12))
    assert len(set(plain_ids.values())) == 12
    assert all(twin == plain_ids for twin in found.values())


def test_rows_that_hold_an_examination_are_set_aside(config: ShardConfig, tmp_path: Path) -> None:
    exam = write(tmp_path / "exam.jsonl", [json.dumps({"question": "and which five words are these?"})])
    held = {"prompt": "And which FIVE words are these", "chosen": " good", "rejected": " bad"}
    source = write(tmp_path / "with_exam.jsonl", [*map(json.dumps, GOOD), json.dumps(held)])
    wanted = config.model_copy(update={"source": source, "decontaminate": (exam,)})
    facts = shard(wanted, out=tmp_path / "out", resources=ShardResources())
    assert (facts["pairs"], facts["dropped"]) == (30, {"contaminated": 1})
    (reject,) = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert (reject["source_row"], reject["reason"]) == (30, "contaminated")
    assert reject["detail"] == "1 n-grams of it stand in exam.jsonl: 'and which five words are these'"


def test_triples_are_unrolled_into_labelled_completions(config: ShardConfig, tmp_path: Path) -> None:
    source = write(tmp_path / "good.jsonl", [*map(json.dumps, GOOD), BAD[2]])
    wanted = config.model_copy(update={"source": source, "rows": "labelled"})
    facts = shard(wanted, out=tmp_path / "out", resources=ShardResources(rows_per_task=7))
    rows = rows_of(tmp_path / "out")
    assert facts["dropped"] == {"equal": 1}
    assert (facts["pairs"], facts["desirable"], facts["labelled"]) == (60, 30, True)
    assert sorted(row["source_row"] for row in rows if row["label"]) == list(range(30))
    assert len({row["pair_id"] for row in rows}) == 60
    tokenizer = load_tokenizer(config.tokenizer)
    for row in rows:
        label = "good" if row["label"] else "bad"
        assert tokenizer.decode(row["completion_ids"][:-1]) == f" {label} {row['source_row']}"
        # Another prompt's completion of the same part, and the id that finds both again.
        others = [other for other in rows if other["completion_ids"] == row["mismatched_ids"]]
        assert [other["prompt_ids"] != row["prompt_ids"] for other in others] == [True]
        assert int(others[0]["pair_id"][:8], 16) % 3 == int(row["pair_id"][:8], 16) % 3
        trained = [0, len(row["completion_ids"])]
        whole = Completion(row["prompt_ids"], row["completion_ids"], trained, row["label"], False, 0).row_id
        assert row["pair_id"] == whole + hash_of(row["prompt_ids"], row["mismatched_ids"])[:16]


def test_ranked_rows_make_several_pairs_and_ties_are_no_fault(config: ShardConfig, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p {i}", "completions": [f" a {i}", f" b {i}", f" c {i}"], "scores": [i % 3, 1, 3]}
        for i in range(12)
    ]
    source = write(tmp_path / "ranked.jsonl", list(map(json.dumps, rows)))
    update = {"source": source, "pairing": "all", "text": "plain", "max_dropped_fraction": 0.0}
    facts = shard(config.model_copy(update=update), out=tmp_path / "out", resources=ShardResources())
    assert (facts["shape"], facts["pairs"], facts["dropped"]) == ("ranked", 32, {"tie": 4})
    margins = {(row["source_row"], row["margin"]) for row in rows_of(tmp_path / "out")}
    assert margins == {(i, m) for i in range(12) for m in {0: (1, 2, 3), 1: (2,), 2: (1, 2)}[i % 3]}


def test_numbers_too_large_for_training_set_their_rows_aside(config: ShardConfig, tmp_path: Path) -> None:
    numbers = ({"w": 1e39}, {"w": 2e38}, {"m": 1e300}, {"m": 1})
    rows = [json.dumps({"w": 1, "m": 0} | GOOD[i] | each) for i, each in enumerate(numbers)]
    update = {"columns": Columns(weight="w", margin="m"), "max_dropped_fraction": 1.0, "eval_fraction": 0.0}
    one = config.model_copy(update={"source": write(tmp_path / "large.jsonl", rows)} | update)
    assert shard(one, out=tmp_path / "one", resources=ShardResources())["dropped"] == {"weight": 1, "margin": 1}
    fields = one.model_dump(exclude={"source", "sources"})
    twice = ShardConfig(**fields, sources=[{"source": one.source, "weight": 2.0}])
    assert shard(twice, out=tmp_path / "two", resources=ShardResources())["dropped"] == {"weight": 2, "margin": 1}
    assert [row["weight"] for row in rows_of(tmp_path / "two")] == [2.0]


def test_a_mixture_and_a_held_out_set(config: ShardConfig, tmp_path: Path) -> None:
    more = [json.dumps(row | {"prompt": f"more {i}"}) for i, row in enumerate(GOOD)]
    held = [json.dumps(GOOD[i] | {"chosen": " other"}) for i in (3, 4)]  # of prompts 3 and 4, which have two rows each
    sources = {
        "sources": [
            {"source": config.source, "name": "first", "where": "prompt != 'prompt 7'", "weight": 0.5},
            {"source": write(tmp_path / "more.jsonl", more), "take": 12},
        ],
        "eval": [{"source": write(tmp_path / "held.jsonl", held), "name": "hard"}],
    }
    fields = config.model_dump(exclude={"source", "sources", "eval"}) | {"num_parts": "auto", "eval_fraction": 0.0}
    mixed = ShardConfig(**fields | sources | {"max_dropped_fraction": 0.5})
    facts = shard(mixed, out=tmp_path / "out", resources=ShardResources(rows_per_task=7))
    pairs = rows_of(tmp_path / "out")
    assert {row["source_row"] for row in pairs if row["split"] == "eval/hard"} == {0, 1}
    assert {row["split"] for row in pairs} == {"train", "eval/hard"}
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    reasons = {(row["source"], row["source_row"]): row["reason"] for row in rejects}
    held_out = {row for row, reason in reasons.items() if reason == "held_out"}
    assert held_out == {("first", row) for row in (3, 4, 18, 19, 33)}
    assert reasons["first", 30] == "malformed"
    assert facts["sources"] == {
        "first": {"rows": 34, "taken": 32, "pairs": 24, "dropped": 8},
        "more.jsonl": {"rows": 30, "taken": 12, "pairs": 12, "dropped": 0},
        "hard": {"rows": 2, "taken": 2, "pairs": 2, "dropped": 0},
    }
    assert (facts["train"], facts["eval"], facts["eval/hard"], facts["num_parts"]) == (36, 0, 2, 1)
    assert facts["dropped"] == {"empty": 1, "equal": 1, "held_out": 5, "malformed": 1}


def test_labelled_rows_make_no_pairs(config: ShardConfig, tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"p {i}", "completion": f" c {i}", "label": i % 2 == 0}) for i in range(20)]
    source = config.model_copy(update={"source": write(tmp_path / "labelled.jsonl", rows)})
    with pytest.raises(RecipeError, match=r"holds labelled completions, .*Set shard\.rows: labelled"):
        shard(source, out=tmp_path / "pairs", resources=ShardResources())
    wanted = source.model_copy(update={"rows": "labelled"})
    facts = shard(wanted, out=tmp_path / "labelled", resources=ShardResources())
    assert (facts["pairs"], facts["desirable"], facts["shape"]) == (20, 10, "labelled")


def test_labels_of_all_kinds(config: ShardConfig, tmp_path: Path) -> None:
    """True and false as JSON, as 0 and 1, as floats; what is text or a sign is set aside with its value."""
    labels = [True, False, 1, 0, 1.0, 0.0, True, False, "True", -1]
    rows = [json.dumps({"prompt": f"p {i}", "completion": f" c {i}", "label": each}) for i, each in enumerate(labels)]
    source = write(tmp_path / "labelled.jsonl", rows)
    wanted = config.model_copy(update={"source": source, "rows": "labelled", "num_parts": 1})
    facts = shard(wanted, out=tmp_path / "out", resources=ShardResources())
    assert (facts["pairs"], facts["desirable"], facts["dropped"]) == (8, 4, {"malformed": 2})
    made = rows_of(tmp_path / "out")
    assert {row["source_row"]: row["label"] for row in made} == {i: bool(labels[i]) for i in range(8)}
    assert all(row["mismatched_ids"] != row["completion_ids"] for row in made)
    details = {row["source_row"]: row["detail"] for row in pq.read_table(tmp_path / "out/rejects.parquet").to_pylist()}
    assert details[8] == "column 'label' is 'True', not true or false"
    assert details[9] == "column 'label' is -1, not true or false"

    one_sided = [json.dumps(json.loads(row) | {"label": True}) for row in rows]
    wanted = wanted.model_copy(update={"source": write(tmp_path / "one.jsonl", one_sided)})
    assert shard(wanted, out=tmp_path / "one", resources=ShardResources())["desirable"] == 10
    # In parts of one row each there is no other prompt.
    many = wanted.model_copy(update={"num_parts": 50})
    with pytest.raises(ContractError, match=r"of one prompt.*Lower shard\.num_parts, or give more prompts"):
        shard(many, out=tmp_path / "many", resources=ShardResources())


@given(st.lists(st.integers(0, 3), min_size=2, max_size=30).filter(lambda prompts: len(set(prompts)) > 1))
def test_the_next_row_in_a_circle_with_another_prompt(prompts: list[int]) -> None:
    count = len(prompts)
    for i, found in enumerate(next_other([[prompt] for prompt in prompts], [0] * count, [1] * count)):
        distances = [d for d in range(1, count) if prompts[(i + d) % count] != prompts[i]]
        assert found == (i + distances[0]) % count


def test_a_mismatched_completion_moves_with_its_spans() -> None:
    """What is cut at max_length loses spans, and one without a trained token left is passed over."""
    ids = pa.list_(pa.int32())
    table = pa.table(
        {
            "pair_id": ["a", "b", "c"],
            "prompt_ids": pa.array([[1], [2, 2, 2, 2, 2], [3, 3]], ids),
            "completion_ids": pa.array([[7] * 5, [8] * 3, [9] * 6], ids),
            "completion_trained": pa.array([[0, 2, 4, 5], [0, 3], [3, 6]], ids),
            "mismatched_ids": pa.nulls(3, ids),
            "mismatched_trained": pa.nulls(3, ids),
        }
    )
    rows, lone = with_mismatched(table, 8)
    assert rows["mismatched_ids"].to_pylist() == [[8] * 3, [7] * 3, [7] * 5]  # c's begins too late for b
    assert rows["mismatched_trained"].to_pylist() == [[0, 3], [0, 2], [0, 2, 4, 5]]
    assert rows["pair_id"].to_pylist() == [
        "a" + hash_of([1], [8] * 3)[:16],
        "b" + hash_of([2] * 5, [7] * 3, [0, 2])[:16],
        "c" + hash_of([3, 3], [7] * 5, [0, 2, 4, 5])[:16],
    ]
    assert not len(lone)
    rows, lone = with_mismatched(table.slice(1), 8)
    assert (rows["mismatched_ids"].to_pylist(), lone["pair_id"].to_pylist()) == ([[8] * 3], ["b"])


def test_one_prompt_has_nothing_mismatched() -> None:
    with pytest.raises(ContractError, match=r"a part has 2 labelled completions of one prompt.*Lower shard\.num_parts"):
        next_other([[1], [1]], [0, 0], [9, 9])


def test_too_many_dropped_rows_stop_the_stage(config: ShardConfig, tmp_path: Path) -> None:
    strict = config.model_copy(update={"max_dropped_fraction": 0.1})
    message = (
        r"4 of 34 rows of .*triples\.jsonl make no pair \(1 duplicate, 1 empty, 1 equal, 1 malformed\), more than "
        r"shard\.max_dropped_fraction 0\.1 allows\. The first: row .*rejects\.parquet"
    )
    with pytest.raises(ContractError, match=message):
        shard(strict, out=tmp_path / "out", resources=ShardResources())
    assert len(pq.read_table(tmp_path / "out" / "rejects.parquet", schema=schema.REJECTS)) == 4


def test_messages_need_a_chat_template(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "plain", chat_template=None)
    said = {name: [{"role": role, "content": name}] for name, role in (("prompt", "user"), ("chosen", "assistant"))}
    source = write(tmp_path / "t.jsonl", [json.dumps(said | {"rejected": [{"role": "assistant", "content": "b"}]})])
    config = ShardConfig(source=source, tokenizer=str(tmp_path / "plain"))
    with pytest.raises(RecipeError, match=r"holds lists of messages, and the tokenizer of .* has no chat template"):
        shard(config, out=tmp_path / "out", resources=ShardResources())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([""], "has no rows"),
        (["{"], "first row .* is not JSON"),
        (["[[]]"], "is a list, not a JSON"),
        (["[]"], "no rows"),
    ],
)
def test_a_source_that_holds_no_triples(rows: list[str], message: str, config: ShardConfig, tmp_path: Path) -> None:
    source = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(RecipeError, match=message):
        shard(config.model_copy(update={"source": source}), out=tmp_path / "out", resources=ShardResources())
