"""Parquet by row groups, Arrow files, and what `datasets` holds: batches of columns as rows."""

import os
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import RecipeError
from stages.model_files import split_revision
from stages.shard.reading.opening import told

BATCH = 500
Rows = Iterator[dict[str, Any]]


def parquet_groups(path: str) -> list[tuple[int, int]]:
    """(rows, bytes) of each row group."""
    if not os.path.getsize(path):
        return []
    with told(path), pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        return [(group.num_rows, group.total_byte_size) for group in groups]


def parquet_rows(path: str, start: int, stop: int, columns: Collection[str] | None) -> Rows:
    """Of the row groups [start, stop)."""
    with told(path), pq.ParquetFile(path) as file:
        _check_names(file.schema_arrow.names, path)
        names = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
        for batch in file.iter_batches(BATCH, row_groups=range(start, stop), columns=names):
            yield from _rows(batch) if names != [] else ({} for _ in range(len(batch)))


def arrow_batches(path: str) -> Iterator[pa.RecordBatch]:
    """Of a file or a stream, which Arrow's files and those of feather are."""
    if not os.path.getsize(path):
        return
    with told(path), pa.memory_map(path) as file:
        try:
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            file.seek(0)
            batches = iter(pa.ipc.open_stream(file))
        for batch in batches:
            _check_names(batch.schema.names, path)
            batch.validate(full=True)  # a damaged one would take the process with it when it is read
            yield batch


def arrow_rows(path: str) -> Rows:
    for batch in arrow_batches(path):
        with told(path):
            for start in range(0, len(batch), BATCH):
                yield from _rows(batch.slice(start, BATCH))


def dataset_rows(dataset: Any, path: str, start: int, stop: int) -> Rows:
    with told(path):
        tables = dataset.with_format("arrow")  # as they are stored: no image is decoded
        for at in range(start, stop, BATCH):
            yield from _rows(tables[at : min(at + BATCH, stop)])


def _check_names(names: list[str], path: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RecipeError(f"{path} has two columns {twice!r}. Give each a name of its own")


def _rows(batch: Any) -> Rows:
    try:
        found = batch.to_pylist()
    except Exception:  # one value that Python has no word for: the others are read, and it says what it is
        names = batch.column_names if isinstance(batch, pa.Table) else batch.schema.names
        found = [{name: _value(batch.column(c), i) for c, name in enumerate(names)} for i in range(len(batch))]
    yield from found


def _value(column: Any, row: int) -> Any:
    try:
        return column[row].as_py()
    except Exception as error:
        return {"unreadable": f"{column.type}: {type(error).__name__}: {error}"}


@lru_cache(maxsize=4)
def load_dataset(kind: str, path: str, split: str, subset: str | None) -> Any:
    """Raises RecipeError where it has no such split, or cannot be loaded."""
    import datasets

    with told(path):
        if kind == "hub":
            name, revision = split_revision(path)
            return datasets.load_dataset(name, subset, split=split, revision=revision)
        loaded = datasets.load_from_disk(path)
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split not in loaded:
        raise RecipeError(f"{path} has no split {split!r}; it has {', '.join(loaded)}. Set shard.split to one of them")
    return loaded[split]
