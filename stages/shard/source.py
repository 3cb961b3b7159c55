"""Where triples come from: files and datasets, read in slices that Ray workers take one by one."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import RecipeError
from stages.model_files import split_revision
from stages.shard.config import ShardConfig

# A row on its way: its origin, and the triple as JSON text, whatever it was read from.
RAW = pa.schema([("source", pa.string()), ("source_row", pa.int64()), ("row", pa.large_string())])


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of one file or dataset; `stop` None means to its end."""

    kind: str  # jsonl | parquet | datasets | hub
    path: str
    start: int = 0
    stop: int | None = None
    split: str = "train"
    subset: str | None = None

    def rows(self) -> Iterator[tuple[int, str]]:
        """(row number, JSON text) of each row. The text of a JSONL row may be malformed: `parse` finds out."""
        if self.kind == "jsonl":
            opener = gzip.open if self.path.endswith(".gz") else open
            with opener(self.path, "rt", encoding="utf-8", errors="replace") as lines:
                numbered = ((i, line) for i, line in enumerate(lines) if line.strip())
                for i, line in numbered if self.stop is None else islice(numbered, self.stop):
                    yield i, line.rstrip("\n")
        elif self.kind == "parquet":
            position = 0
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(1000):
                    for row in batch.to_pylist():
                        if self.stop is not None and position >= self.stop:
                            return
                        yield position, json.dumps(row, ensure_ascii=False, default=str)
                        position += 1
        else:
            dataset = _load_dataset(self)
            for i in range(self.start, len(dataset) if self.stop is None else self.stop):
                yield i, json.dumps(dataset[i], ensure_ascii=False, default=str)

    def tables(self, rows_per_table: int) -> Iterator[pa.Table]:
        rows = self.rows()
        while chunk := list(islice(rows, rows_per_table)):
            numbers, texts = zip(*chunk, strict=True)
            yield pa.table(
                [pa.array([Path(self.path).name] * len(chunk)), pa.array(numbers), pa.array(texts, pa.large_string())],
                schema=RAW,
            )

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def slices(config: ShardConfig, rows_per_task: int) -> list[Slice]:
    """The work list of a source, in a fixed order. With `limit`, exactly its first rows."""
    path = Path(config.source)
    if path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
        return _cut(Slice("datasets", config.source, split=config.split), config.limit, rows_per_task)
    files = _files(config.source)
    if files:
        return _limited([Slice(_kind(file), file) for file in files], config.limit)
    whole = Slice("hub", config.source, split=config.split, subset=config.subset)
    return _cut(whole, config.limit, rows_per_task)


def _files(source: str) -> list[str]:
    path = Path(source)
    if path.is_file():
        return [source]
    if path.is_dir():
        found = [str(file) for file in sorted(path.iterdir()) if _kind(file.name, strict=False)]
        if not found:
            raise RecipeError(f"shard.source {source} is a folder without .jsonl, .jsonl.gz or .parquet files in it")
        return found
    return sorted(glob(source))


def _kind(name: str, strict: bool = True) -> str:
    if name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        return "jsonl"
    if name.endswith(".parquet"):
        return "parquet"
    if strict:
        raise RecipeError(f"shard.source {name} is none of .jsonl, .jsonl.gz, .parquet. Convert it to one of these")
    return ""


def _limited(files: list[Slice], limit: int | None) -> list[Slice]:
    if limit is None:
        return files
    taken = []
    for file in files:
        rows = sum(1 for _ in islice(file.rows(), limit))
        taken.append(Slice(file.kind, file.path, stop=rows))
        limit -= rows
        if not limit:
            break
    return taken


def _cut(whole: Slice, limit: int | None, rows_per_task: int) -> list[Slice]:
    count = len(_load_dataset(whole))
    count = count if limit is None else min(count, limit)
    starts = range(0, count, rows_per_task)
    return [Slice(whole.kind, whole.path, s, min(s + rows_per_task, count), whole.split, whole.subset) for s in starts]


@lru_cache(maxsize=1)
def _load_dataset_from(kind: str, path: str, split: str, subset: str | None) -> Any:
    import datasets

    if kind == "hub":
        name, revision = split_revision(path)
        return datasets.load_dataset(name, subset, split=split, revision=revision)
    loaded = datasets.load_from_disk(path)
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split not in loaded:
        raise RecipeError(f"{path} has no split {split!r}; it has {', '.join(loaded)}. Set shard.split to one of them")
    return loaded[split]


def _load_dataset(piece: Slice) -> Any:
    return _load_dataset_from(piece.kind, piece.path, piece.split, piece.subset)
