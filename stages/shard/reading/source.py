"""Rows on their way: a source in slices that Ray workers take one by one."""

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np

from stages.shard.config import Source
from stages.shard.hashes import ODD, mixed
from stages.shard.reading import array, cells, columnar, lines
from stages.shard.reading.opening import is_array, text_of
from stages.shard.reading.values import as_text
from stages.shard.reading.where import Where, compiled
from stages.storage import named
from stages.storage.place import is_remote

_NO_TEXT = {"margin", "label", "scores", "ranks", "weight"}  # columns of numbers and truths, whose cells are read so
_CHUNK = 500
Record = bytes | str | dict[str, Any]  # a line, JSON text, or columns


@dataclass(frozen=True)
class Slice:
    """Some rows of one file or dataset."""

    kind: str  # lines | array | cells | parquet | arrow | datasets | hub
    path: str  # a file on disk or in object storage, a folder, or a name
    name: str  # in the column `source`; what is taken depends on it, but not on the path
    which: int
    of: str  # the Source, as JSON
    first: int = 0  # the number of its first row, or line
    start: int = 0  # in bytes of lines, row groups of Parquet, rows of a dataset
    stop: int | None = None  # None: to the end
    limit: int | None = None  # only the first rows
    below: int | None = None  # only rows whose hash is below it

    @property
    def source(self) -> Source:
        return _source(self.of)

    def rows(self) -> Iterator[tuple[int, str]]:
        """(row number, JSON text) of each row that is taken. The text may be malformed: `parse` finds out.

        Raises RecipeError where the file is damaged.
        """
        where = compiled(self.source.where) if self.source.where is not None else None
        numbered = self.records()
        while chunk := list(islice(numbered, _CHUNK)):
            if self.below is not None:
                low = hashes(self.name, np.fromiter((number for number, _ in chunk), np.uint64)) < self.below
                chunk = [each for each, is_low in zip(chunk, low.tolist(), strict=True) if is_low]
            for number, record in chunk:
                if _holds(where, record):
                    yield number, json_text(record)

    def records(self, columns: Collection[str] | None = None) -> Iterator[tuple[int, Record]]:
        """(row number, what was read) of all rows but blank lines; of tables only `columns`, if given."""
        return islice(self._records(columns), self.limit)

    def _records(self, columns: Collection[str] | None) -> Iterator[tuple[int, Record]]:
        if self.kind == "lines":
            for number, line in lines.lines(self.file(), self.start, self.stop):
                yield self.first + number, line
            return
        found: Iterator[Record]
        if self.kind == "array":
            found = array.elements(self.file())
        elif self.kind == "cells":
            delimiter = "\t" if ".tsv" in self.path.lower() else ","
            found = cells.rows(self.file(), delimiter, _text_columns(self.source))
        elif self.kind == "parquet":
            assert self.stop is not None
            found = columnar.parquet_rows(self.file(), self.start, self.stop, columns)
        elif self.kind == "arrow":
            found = columnar.arrow_rows(self.file())
        else:
            assert self.stop is not None
            found = columnar.dataset_rows(self.dataset(), self.path, self.start, self.stop)
        yield from enumerate(found, self.first)

    def numbers(self) -> np.ndarray:
        """uint64 [rows]: the row numbers alone, without a look at the rows where that can be."""
        if self.kind in ("parquet", "datasets", "hub") and self.limit is not None:
            return np.arange(self.first, self.first + self.limit, dtype=np.uint64)
        return np.fromiter((number for number, _ in self.records(())), np.uint64)

    def count(self) -> tuple[int, int]:
        """(lines, rows)."""
        if self.kind == "lines" and self.limit is None:
            return lines.count(self.file(), self.start, self.stop)
        found = len(self.numbers())
        return found, found

    def file(self) -> str:
        """On this node's disk."""
        return str(named.fetched(self.path)) if is_remote(self.path) else self.path

    def dataset(self) -> Any:
        return columnar.load_dataset(self.kind, self.path, self.source.split, self.source.subset)

    def looked_into(self) -> "Slice":
        """Of a kind that only the content tells: an array, in a file of lines by its name."""
        return replace(self, kind="array") if self.kind == "lines" and is_array(self.file()) else self

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def json_text(record: Record) -> str:
    if isinstance(record, bytes):
        return text_of(record)
    return record if isinstance(record, str) else as_text(record)


def columns_of(record: Record) -> dict[str, Any] | None:
    """None where it is no row of columns."""
    if isinstance(record, dict):
        return record
    try:
        row = json.loads(record)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def hashes(name: str, numbers: np.ndarray) -> np.ndarray:
    """int64 [rows], evenly from 0 to 2^63, of a file's row numbers: which rows are taken depends on nothing else."""
    seed = np.uint64(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))
    return (mixed(seed + numbers.astype(np.uint64) * ODD) >> np.uint64(1)).astype(np.int64)


def _holds(where: Where | None, record: Record) -> bool | None:
    """A record that is no row is taken, to be set aside with its reason."""
    if where is None or (row := columns_of(record)) is None:
        return True
    return where.of(row)


def _text_columns(source: Source) -> set[str]:
    columns = source.columns.model_dump()
    return {name for role, name in columns.items() if isinstance(name, str) and role not in _NO_TEXT}


@lru_cache(maxsize=64)
def _source(of: str) -> Source:
    return Source.model_validate_json(of)
