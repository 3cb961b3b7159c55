"""Mutated files, read to their ends: rows or a RecipeError, never another exception.

`python -m tests.fuzz` reads 10,000 of them; the suite reads a few hundred.
"""

import argparse
import gzip
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from stages.errors import RecipeError
from stages.shard.config import ShardConfig
from stages.shard.reading.survey import survey

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"How was day {i}, \u00e9\U0001f600?", "name": None}],
        "chosen": [{"role": "assistant", "content": "Bright\n" * (i % 4), "tool_calls": [{"arguments": {"n": i}}]}],
        "rejected": [{"role": "assistant", "content": '"Dark", {[' * (i % 3)}],
        "gap": i / 3,
    }
    for i in range(40)
]
SPLICES = [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b"\n",
    b"\r",
    b"\\ud800",
    b"[",
    b"{",
    b"}",
    b"]",
    b",",
    b"\t",
    b"9" * 5000,
]


def _zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def originals(folder: Path) -> dict[str, bytes]:
    """A sound file of each kind."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    cells = "prompt,chosen,rejected,gap\n" + "".join(f'"p, {i}","a ""{i}""\n",b,{i}\n' for i in range(40))
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, folder / "a.parquet", row_group_size=15)
    pq.write_table(table, folder / "b.parquet", compression="zstd", use_dictionary=False)
    pyarrow.feather.write_feather(table, folder / "a.feather")
    return {
        "a.jsonl": lines,
        "crlf.jsonl": lines.replace(b"\n", b"\r\n"),
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.zst": _zstd(lines),
        "a.json": json.dumps(ROWS, indent=1).encode(),
        "dense.json": json.dumps(ROWS).encode(),
        "a.csv": cells.encode(),
        "a.tsv": cells.replace(",", "\t").encode(),
        "a.csv.gz": gzip.compress(cells.encode()),
        **{name: (folder / name).read_bytes() for name in ("a.parquet", "b.parquet", "a.feather")},
    }


def mutated(data: bytes, choice: random.Random) -> bytes:
    """One to four changes: bytes flipped, cut off, cut out, doubled, put in."""
    for _ in range(choice.randint(1, 4)):
        at, other = sorted((choice.randrange(len(data) + 1), choice.randrange(len(data) + 1)))
        near = min(other, at + choice.randint(1, 40))
        match choice.randrange(7):
            case 0:
                data = data[:at]
            case 1:
                data = data[:at] + bytes(byte ^ (1 << choice.randrange(8)) for byte in data[at:near]) + data[near:]
            case 2:
                data = data[:at] + choice.randbytes(choice.randint(1, 20)) + data[at:]
            case 3:
                data = data[:at] + choice.choice(SPLICES) + data[at:]
            case 4:
                data = data[:at] + data[near:]
            case 5:
                data = data[:at] + data[at:other] * 2 + data[other:]
            case 6:
                data = data[other:] + data[:at]
    return data


def read(path: Path, choice: random.Random) -> str:
    """What came of it: how it is counted."""
    where = choice.choice((None, None, "gap > 3 and len(chosen) > 0"))
    try:
        config = ShardConfig(source=str(path), tokenizer="t", where=where, limit=choice.choice((None, 7)))
        work = survey(config, 5, slice_bytes=choice.choice((50, 3000, 1 << 20)))
        for piece in work.slices:
            for number, text in piece.rows():
                assert isinstance(number, int)
                assert isinstance(text, str)
                text.encode()  # as a column of text takes it
    except RecipeError:
        return "refused"
    return "rows"


def run(count: int, seed: int, folder: Path, notify: Callable[[str], None] = lambda _: None) -> Counter[str]:
    """Raises what reading raised, with the mutated file left in `folder`."""
    choice, sound, found = random.Random(seed), originals(folder), Counter[str]()
    for number in range(count):
        name = choice.choice(list(sound))
        path = folder / f"mutated-{name}"
        path.write_bytes(mutated(sound[name], choice))
        try:
            found[read(path, choice)] += 1
        except Exception as error:
            error.add_note(f"file {number} of seed {seed}: {path}")
            raise
        if number % 1000 == 999:
            notify(f"{number + 1} files: {dict(found)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="how many files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()
    found = run(options.count, options.seed, Path(tempfile.mkdtemp(prefix="raydpo-fuzz-")), notify=print)
    print(f"{options.count} mutated files in {time.perf_counter() - began:.0f} s: {dict(found)}")


if __name__ == "__main__":
    main()
