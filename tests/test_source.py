"""Rows from files and datasets, in order, whatever they are written in."""

import gzip
import json
import os
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from stages.errors import RecipeError
from stages.shard.config import ShardConfig
from stages.shard.reading.files import split_of_name
from stages.shard.reading.survey import sample, slices, survey
from stages.shard.reading.values import without_nulls

ROWS = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(7)]
ALL = [f"p{i}" for i in range(7)]


def config_of(source: Path | str, **fields: Any) -> ShardConfig:
    return ShardConfig(source=str(source), tokenizer="x", **fields)


def texts(source: Path | str, slice_bytes: int = 1 << 20, **fields: Any) -> list[tuple[int, str]]:
    work = survey(config_of(source, **fields), 3, slice_bytes=slice_bytes)
    found = [row for piece in work.slices for row in piece.rows()]
    assert work.taken == [len(found)]
    return found


def read(source: Path | str, **fields: Any) -> list[str]:
    return [json.loads(text)["prompt"] for _, text in texts(source, **fields)]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes({".gz": gzip.compress, ".zst": zstd}.get(path.suffix, bytes)(data))
    return path


def test_one_file_of_each_kind(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson"):
        assert read(jsonl(tmp_path / name, ROWS)) == ALL
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n" + "".join(f"p{i},a,b\n" for i in range(7)))
    (tmp_path / "a.tsv").write_text("prompt\tchosen\n" + "".join(f"p{i}\ta\n" for i in range(7)))
    for name in ("a.parquet", "a.feather", "a.arrow", "a.json", "a.csv", "a.tsv"):
        assert texts(tmp_path / name)[6][0] == 6
        assert read(tmp_path / name) == ALL, name
        assert read(tmp_path / name, limit=3) == ALL[:3]


def test_marks_line_ends_compression_and_blank_lines_change_nothing(tmp_path: Path) -> None:
    plain = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*ROWS, {"prompt": "é\u2028 \U0001f600"}])
    lines = [line + b"\n" for line in plain.encode().split(b"\n")[:-1]]
    twins = {
        "plain.jsonl": b"".join(lines),
        "mark.jsonl": b"\xef\xbb\xbf" + b"".join(lines),
        "crlf.jsonl": b"".join(lines).replace(b"\n", b"\r\n"),
        "open.jsonl": b"".join(lines).rstrip(),
        "members.jsonl.gz": b"".join(map(gzip.compress, lines)),
        "frames.jsonl.zst": b"".join(map(zstd, lines)),
        "mark.jsonl.gz": gzip.compress(b"\xef\xbb\xbf" + b"".join(lines)),
        "not-packed.jsonl.zst": b"".join(lines),  # as it was found: the name says more than the file
        "packed.jsonl": gzip.compress(b"".join(lines)),
    }
    for name, data in twins.items():
        (tmp_path / name).write_bytes(data)
        for slice_bytes in (1, 100, 1 << 20):
            assert texts(tmp_path / name, slice_bytes) == texts(tmp_path / "plain.jsonl"), name


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_refused_by_name(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "p"}\n', encoding=encoding)
    with pytest.raises(RecipeError, match=r"a\.jsonl is not text in UTF-8 but in UTF-16 or UTF-32\. Save it"):
        texts(tmp_path / "a.jsonl")


def test_a_line_that_is_no_utf_8_is_no_json_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n{"prompt": "p"}\n')
    (_, broken), good = texts(tmp_path / "a.jsonl")
    assert broken.startswith("(not UTF-8: invalid continuation byte at byte 15) {")
    assert good == (1, '{"prompt": "p"}')


def test_row_numbers_count_blank_and_broken_lines_however_the_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{broken\n{"a": 2}\n \t\n\n{"a": "' + "x" * 500 + '"}')
    whole = texts(path)
    assert [number for number, _ in whole] == [0, 2, 3, 6]
    assert whole[:3] == [(0, '{"a": 1}'), (2, "{broken"), (3, '{"a": 2}')]
    for slice_bytes in range(1, 40):
        assert texts(path, slice_bytes) == whole
        assert texts(path, slice_bytes, limit=3) == whole[:3]


def test_an_array_however_it_is_printed(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": 'é ] } " \\ \n', "n": 10**400, "inner": [1.5e3, None, {"x": []}]}, [], 5, "s"]
    for indent in (None, 1, "\t"):
        for name in ("a.json", "a.jsonl"):
            (tmp_path / name).write_text("\ufeff\n " + json.dumps(rows, indent=indent, ensure_ascii=False) + " \n")
            found = texts(tmp_path / name)
            assert [number for number, _ in found] == list(range(len(rows)))
            if indent is None:
                assert [text for _, text in found] == [json.dumps(row, ensure_ascii=False) for row in rows]
    big = [{"prompt": "x" * 3_000_000}, *ROWS]
    (tmp_path / "big.json").write_text(json.dumps(big))
    assert [json.loads(text) for _, text in texts(tmp_path / "big.json")] == big


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": ', "is not JSON: .* at character 11. Mend it"),
        ('[{"a": 1}', "breaks off at character 9"),
        ('[{"a": 1} {"a": 2}]', "has '{' where , or ] should be at character 10"),
        ("[1]\n[2]", "goes on after the array's end at character 4"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_an_array_that_is_none_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RecipeError, match=rf"a\.json begins as a JSON array, and .*{message}"):
        texts(tmp_path / "a.json")


def test_cells_are_text_but_for_numbers_and_truths_in_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfprompt,chosen,rejected,gap,id,label,messages\r\n"
        b'4,"two\r\nlines, ""so""",,1.5,007,TRUE,"[{""a"": 1}]"\r\n'
        b"\r\na,b\r\n5,x,y,,12345678901234567890,no,\r\n6,caf\xe9,y,1,1,1,1\r\n"
    )
    first, short, second, broken = texts(path, columns={"margin": "gap"})
    assert json.loads(first[1]) == {
        "prompt": "4", "chosen": 'two\r\nlines, "so"', "rejected": "", "gap": 1.5, "id": "007", "label": True,
        "messages": '[{"a": 1}]',
    }  # fmt: skip
    assert short == (1, "(2 cells, and 7 columns) a | b")
    assert json.loads(second[1])["id"] == "12345678901234567890"
    assert json.loads(second[1])["gap"] is None
    assert broken[1].startswith("(not UTF-8: unexpected end of data at byte 3) 6 | ")
    path.write_text('a,b\n1,"open\n')
    with pytest.raises(RecipeError, match=r"a\.csv cannot be read: Error: unexpected end of data"):
        texts(path)
    path.write_text('"prompt";"chosen, all"\n"a, b";"c\n;d"\n')  # as spreadsheets write where commas are decimal
    assert [json.loads(text) for _, text in texts(path)] == [{"prompt": "a, b", "chosen, all": "c\n;d"}]
    path.write_text("prompt\na;b\n")
    assert [json.loads(text) for _, text in texts(path)] == [{"prompt": "a;b"}]
    path.write_text("a,a\n1,2\n")
    with pytest.raises(RecipeError, match=r"has two columns 'a'"):
        texts(path)


def test_values_that_json_has_no_word_for(tmp_path: Path) -> None:
    moment = datetime(2024, 1, 2, tzinfo=UTC)
    row = {
        "t": moment,
        "d": Decimal("1.50"),
        "b": b"text",
        "raw": b"\xff\xfe",
        "nan": float("nan"),
        "day": moment.date(),
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    found = json.loads(texts(tmp_path / "a.parquet")[0][1])
    assert str(found.pop("nan")) == "nan"
    assert found == {"t": moment.isoformat(), "d": 1.5, "b": "text", "raw": {"bytes": 2}, "day": "2024-01-02"}
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    table = pa.table({"prompt": bad, "ns": pa.array([1], pa.timestamp("ns")), "chosen": ["kept"]})
    pq.write_table(table, tmp_path / "b.parquet")
    found = json.loads(texts(tmp_path / "b.parquet")[0][1])
    assert found["chosen"] == "kept"
    assert found["prompt"]["unreadable"].startswith("string: UnicodeDecodeError")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([["a"], ["b"], ["c"]], names=["prompt", "chosen", "chosen"])
    pq.write_table(table, tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    for name in ("a.parquet", "a.feather"):
        with pytest.raises(RecipeError, match=rf"{name} has two columns 'chosen'\. Give each a name of its own"):
            texts(tmp_path / name)


def test_nulls_that_tables_put_into_unlike_rows_are_taken_out(tmp_path: Path) -> None:
    rows = [
        {"chosen": [{"role": "user", "content": "q", "name": "n"}, {"role": "assistant", "content": "a"}], "x": None},
        {"chosen": [{"role": "assistant", "content": None, "tool_calls": [{"f": {"city": "Ulm", "day": 2}}]}], "x": 1},
        {"chosen": [{"role": "assistant", "content": "", "tool_calls": [{"f": {"id": [1, None]}}]}], "x": 2},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for source in ("a.parquet", "saved"):
        assert [json.loads(text) for _, text in texts(tmp_path / source)] == rows
    assert without_nulls({"a": None, "b": ({"c": None},)}) == {"b": [{}]}


def test_row_groups_are_numbered_through(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=2)
    for slice_bytes in (1, 300, 1 << 20):
        work = survey(config_of(tmp_path / "a.parquet", limit=5), 3, slice_bytes=slice_bytes)
        assert [number for piece in work.slices for number, _ in piece.rows()] == [0, 1, 2, 3, 4]


def test_a_datasets_folder(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one") == ALL
    assert read(tmp_path / "one", limit=4) == ALL[:4]
    datasets.DatasetDict({"train_prefs": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "splits", split="train_prefs") == ALL
    with pytest.raises(RecipeError, match=r"no split 'train'; it has train_prefs\. Set shard\.split"):
        read(tmp_path / "splits")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "cut")
    (tmp_path / "cut" / "data-00000-of-00001.arrow").write_bytes(b"cut")
    with pytest.raises(RecipeError, match=r"cut cannot be read: "):
        read(tmp_path / "cut")


def test_what_stands_beside_data_makes_no_datasets_folder(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"registry": {"file_name": "data.json"}}')
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "data.json").write_text(json.dumps(ROWS, indent=1))
    assert read(tmp_path) == ALL


def test_a_file_whose_name_is_no_utf_8(tmp_path: Path) -> None:
    path = jsonl(tmp_path / os.fsdecode(b"caf\xe9.jsonl"), ROWS)
    for source in (tmp_path, tmp_path / "*.jsonl"):
        (piece,) = slices(config_of(source), 3)
        assert (piece.name, piece.path) == ("caf\\udce9.jsonl", str(path))
        assert len(list(piece.rows())) == 7


def test_folders_and_patterns_in_order_with_a_limit_over_files(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", ROWS[4:])
    jsonl(tmp_path / "a.jsonl", ROWS[:4])
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "empty.jsonl.gz").write_bytes(gzip.compress(b"\n"))
    (tmp_path / "empty.parquet").write_bytes(b"")
    assert read(tmp_path) == ALL
    assert read(tmp_path / "*.jsonl") == ALL
    assert read(tmp_path, limit=5) == ALL[:5]
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), tmp_path / "c.parquet")  # of another kind
    assert read(tmp_path) == [*ALL, "p0"]
    assert {piece.name for piece in slices(config_of(tmp_path), 10)} == {"a.jsonl", "b.jsonl", "c.parquet"}


def test_a_source_without_rows_is_told(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [])
    with pytest.raises(RecipeError, match=r"shard\.source .* has no rows"):
        texts(tmp_path)
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(RecipeError, match=r"is a folder without files of triples in it\. Read are \.jsonl"):
        texts(tmp_path)
    with pytest.raises(RecipeError, match=r"a\.txt is none of \.jsonl, .*Convert it"):
        texts(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("names", "split", "taken"),
    [
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"],
         "train", ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]),
        (["data/train_prefs-00000-of-00001.jsonl", "data/test_prefs-00000-of-00001.jsonl"],
         "test_prefs", ["data/test_prefs-00000-of-00001.jsonl"]),
        (["train/a.jsonl", "val/a.jsonl"], "validation", ["val/a.jsonl"]),
        (["set_dev.jsonl", "set_train.jsonl"], "dev", ["set_dev.jsonl"]),
        (["latest.jsonl", "part2.jsonl"], "train", ["latest.jsonl", "part2.jsonl"]),
        (["only_test.jsonl"], "train", ["only_test.jsonl"]),
        (["en/train.jsonl", "en/test.jsonl"], "train", ["en/train.jsonl"]),
    ],
)  # fmt: skip
def test_a_folder_takes_the_files_of_the_split(tmp_path: Path, names: list[str], split: str, taken: list[str]) -> None:
    for name in names:
        jsonl(tmp_path / name, ROWS)
    found = slices(config_of(tmp_path, split=split), 10)
    assert [piece.name for piece in found] == taken


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["train_prefs-00000-of-00001.jsonl", "test_prefs-00000-of-00001.jsonl"], "train",
         r"several splits \(test_prefs: test_prefs-0.*; train_prefs: .*Set shard\.split to one of test_prefs, t"),
        (["test.jsonl", "more.jsonl"], "train", r"several splits \(of no split: more\.jsonl; test: test\.jsonl\)"),
        (["train.jsonl", "more.jsonl"], "train", r"several splits"),
        (["train.jsonl"], "validation", r"has no files of the split 'validation' \(train: train\.jsonl\)"),
        (["a.jsonl"], "test", r"has no files of the split 'test' \(of no split: a\.jsonl\)"),
    ],
)  # fmt: skip
def test_two_splits_are_not_taken_for_one(tmp_path: Path, names: list[str], split: str, message: str) -> None:
    for name in names:
        jsonl(tmp_path / name, ROWS)
    for source in (tmp_path, tmp_path / "*.jsonl"):
        with pytest.raises(RecipeError, match=message):
            slices(config_of(source, split=split), 10)


def test_a_subset_is_a_folder_in_a_folder(tmp_path: Path) -> None:
    jsonl(tmp_path / "en/train.jsonl", ROWS)
    jsonl(tmp_path / "fr/train.jsonl", ROWS[:2])
    assert read(tmp_path, subset="fr") == ALL[:2]


def test_words_that_name_no_split() -> None:
    assert [split_of_name(name) for name in ("contest.jsonl", "latest/protrain.jsonl", "a.parquet")] == ["", "", ""]


def test_a_look_at_the_first_rows_reads_no_more_than_these(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl.gz", ROWS * 2000)
    path.write_bytes(path.read_bytes()[:-20])  # damaged, but at its end
    (source,) = config_of(path).all_sources
    assert [number for _, number, _ in sample(source, 5)] == [0, 1, 2, 3, 4]
    with pytest.raises(RecipeError, match=r"a\.jsonl\.gz cannot be read: .*Is it whole"):
        slices(config_of(path), 10)
