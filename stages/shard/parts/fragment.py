"""Tokenized rows on their way from the tasks that read to the tasks that write parts: a few files a task.

The rows of a cell, some parts that follow each other, lie together in such a file. So a task that writes parts reads
its rows alone, and ten thousand parts make no more files than ten. In Arrow's file format: a batch a cell, and columns
are read on demand.
"""

import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

# A batch of a few rows costs more than its rows. With parts of a thousand pairs, 32 of them are 45 MB of ids.
_FEW_CELLS, _PARTS_OF_A_CELL = 16, 32
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


def num_cells(num_parts: int) -> int:
    return min(num_parts, max(_FEW_CELLS, num_parts // _PARTS_OF_A_CELL))


def parts_of(cell: int, num_parts: int) -> range:
    cells = num_cells(num_parts)
    return range(-(-cell * num_parts // cells), -(-(cell + 1) * num_parts // cells))


def write_fragment(rows: pa.Table, path: Path, num_parts: int) -> np.ndarray:
    """Write rows with a column `part`; those of a cell keep their order. Returns about how many bytes each cell has."""
    cells, row_bytes = num_cells(num_parts), rows.nbytes / len(rows)
    cell = rows["part"].to_numpy() * cells // num_parts
    rows = rows.take(pa.array(np.argsort(cell, kind="stable"))).combine_chunks()
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_file(file, rows.schema, options=_OPTIONS) as writer:
        start, counts = 0, np.bincount(cell, minlength=cells)
        for count in counts:
            writer.write_batch(_batch(rows.slice(start, count)))
            start += count
    unfinished.rename(path)
    return counts * row_bytes


class Fragments:
    """Some fragments of one schema, read cell by cell, in their order."""

    def __init__(self, paths: Sequence[Path], schema: pa.Schema):
        self._paths, self._schema = paths, schema
        self._opened: dict[tuple[str, ...], list[pa.ipc.RecordBatchFileReader]] = {}

    def read(self, cell: int, names: Sequence[str]) -> pa.Table:
        """These columns of a cell's rows, and where they stand: `fragment` and `place`, for `pick`."""
        batches = [reader.get_batch(cell) for reader in self._readers(names)]
        lengths = [len(batch) for batch in batches]
        schema = pa.schema([self._schema.field(name) for name in names])
        rows = pa.Table.from_batches([batch.select(names) for batch in batches if len(batch)], schema)
        places = np.concatenate([np.arange(length) for length in lengths]) if batches else np.arange(0)
        rows = rows.append_column("fragment", pa.array(np.repeat(np.arange(len(batches)), lengths)))
        return rows.append_column("place", pa.array(places))

    def pick(self, cell: int, rows: pa.Table, name: str) -> pa.Array:
        """A further column of some rows of a cell; read only in the fragments that hold one of them."""
        fragment, place = rows["fragment"].to_numpy(), rows["place"].to_numpy()
        found: list[pa.Array] = [pa.array([], self._schema.field(name).type)]
        order = np.argsort(fragment, kind="stable")
        for each in np.unique(fragment):
            column = self._readers([name])[each].get_batch(cell).column(name)
            found.append(column.take(pa.array(place[fragment == each])))
        return pa.concat_arrays(found).take(pa.array(np.argsort(order)))

    def _readers(self, names: Sequence[str]) -> list[pa.ipc.RecordBatchFileReader]:
        key = tuple(names)
        if key not in self._opened:
            included = sorted(self._schema.get_field_index(name) for name in names)
            options = pa.ipc.IpcReadOptions(included_fields=included)
            self._opened[key] = [pa.ipc.open_file(pa.memory_map(str(path)), options=options) for path in self._paths]
        return self._opened[key]


def _batch(rows: pa.Table) -> pa.RecordBatch:
    if len(rows):
        return rows.to_batches()[0]
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in rows.schema], schema=rows.schema)
