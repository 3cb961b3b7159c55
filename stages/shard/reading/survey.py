"""The work list: all sources in slices, their rows counted, and which of them are taken."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import RecipeError
from stages.shard.config import ShardConfig, Source
from stages.shard.reading.columnar import load_dataset, parquet_groups
from stages.shard.reading.files import files_of, is_saved_dataset
from stages.shard.reading.lines import ranges
from stages.shard.reading.opening import is_compressed
from stages.shard.reading.source import Slice, columns_of, hashes
from stages.shard.reading.where import compiled
from stages.storage.named import unmarked

SLICE_BYTES = 16 << 20  # of lines or Parquet, uncompressed; what is read does not depend on it
ROWS_PER_PART = 1000
Each = Callable[[Callable[[Slice], Any], Sequence[Slice]], Iterable[Any]]


@dataclass(frozen=True)
class Work:
    slices: list[Slice]  # in a fixed order
    rows: list[int]  # of each source, as read
    taken: list[int]  # of them, by `where` and `take`
    notices: list[str]

    @property
    def num_parts(self) -> int:
        return max(1, -(-sum(self.taken) // ROWS_PER_PART))

    def by_source(self, config: ShardConfig, facts: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """Rows as read, those taken of them, and what became of these; `facts` are those of all parts."""
        return {
            source.label: {"rows": self.rows[which], "taken": self.taken[which]}
            | {made: facts.get(f"source/{which}/{made}", 0) for made in ("pairs", "dropped")}
            for which, source in enumerate(config.all_sources)
        }


def survey(config: ShardConfig, rows_per_task: int, each: Each = map, slice_bytes: int = SLICE_BYTES) -> Work:
    """Look through all sources. `each` maps a function over slices: here, or on many workers.

    Raises RecipeError for a source that cannot be read, or of which nothing is taken.
    """
    work = Work([], [], [], [])
    for which, source in enumerate(config.all_sources):
        pieces, rows = _counted(cut(source, which, rows_per_task, slice_bytes), config.limit, each)
        if not rows:
            raise RecipeError(f"shard.source {source.source} has no rows")
        taken = rows
        if source.where is not None or source.take is not None:
            pieces, taken = _taken(pieces, rows, source, each, work.notices)
        work.slices.extend(pieces)
        work.rows.append(rows)
        work.taken.append(taken)
    return work


def slices(config: ShardConfig, rows_per_task: int) -> list[Slice]:
    return survey(config, rows_per_task).slices


def sample(source: Source, count: int, which: int = 0) -> list[tuple[str, int, str]]:
    """(name, row number, JSON text) of the first rows that `where` lets through, at the cost of these rows alone.

    Raises RecipeError for a source that cannot be read.
    """
    rows = (
        (piece.name, number, text)
        for piece in cut(source, which, count, SLICE_BYTES, look=True)
        for number, text in piece.rows()
    )
    return list(islice(rows, count))


def nothing_of(source: Source, count: int) -> RecipeError:
    """Why `sample` gives no row of it, as its first rows say without `where`."""
    rows = sample(source.model_copy(update={"where": None}), count) if source.where is not None else []
    if not rows:
        return RecipeError(f"shard.source {source.source} has no rows. Name one that has some")
    seen = [row for _, _, text in rows if (row := columns_of(text))]
    return _unknown_column(source, seen) or RecipeError(
        f"of the rows of {source.source} none is taken (where: {source.where})"
    )


def _unknown_column(source: Source, rows: Sequence[dict[str, Any]], known: Collection[str] = ()) -> RecipeError | None:
    """Of those that `where` names, one that is neither in the rows nor among those known to be elsewhere."""
    for name in compiled(str(source.where)).columns:
        if name not in known and not any(name in row for row in rows):
            there = ", ".join(map(repr, rows[0])) if rows else ""
            return RecipeError(
                f"where: {source.where} names the column {name!r}, which {source.source} does not have; it has "
                f"{there or 'none'}"
            )
    return None


def cut(source: Source, which: int, rows_per_task: int, slice_bytes: int, look: bool = False) -> Iterator[Slice]:
    """All slices of a source; the rows of lines are numbered from the slice's first. With `look` no file is cut."""
    whole = Slice("", source.source, source.name or Path(source.source).name, which, source.model_dump_json())
    saved = is_saved_dataset(source.source)
    files = [] if saved else files_of(source)
    for file in files:
        is_one = Path(unmarked(file.path)[0]) == Path(unmarked(source.source)[0]).expanduser()
        name = "/".join(filter(None, (source.name, None if is_one and source.name else file.name)))
        piece = replace(whole, kind=file.kind, path=file.path, name=name).looked_into()
        yield from _cut_file(piece, slice_bytes, look)
    if not files:
        piece = replace(whole, kind="datasets" if saved else "hub")
        rows = len(load_dataset(piece.kind, piece.path, source.split, source.subset))
        for start in range(0, rows, rows_per_task):
            stop = min(start + rows_per_task, rows)
            yield replace(piece, first=start, start=start, stop=stop, limit=stop - start)


def _cut_file(piece: Slice, slice_bytes: int, look: bool) -> Iterator[Slice]:
    if piece.kind == "lines" and not look and not is_compressed(piece.file()):
        for start, stop in ranges(piece.file(), slice_bytes):
            yield replace(piece, start=start, stop=stop)
    elif piece.kind == "parquet":
        first = begun = rows = size = 0
        groups = parquet_groups(piece.file())
        for i, (group_rows, group_bytes) in enumerate(groups):
            rows, size = rows + group_rows, size + group_bytes
            if size >= slice_bytes or i == len(groups) - 1:
                yield replace(piece, first=first, start=begun, stop=i + 1, limit=rows)
                first, begun, rows, size = first + rows, i + 1, 0, 0
    else:
        yield piece


def _counted(pieces: Iterator[Slice], limit: int | None, each: Each) -> tuple[list[Slice], int]:
    """Slices with rows in them, numbered as in their file, exactly the first `limit` if given; and how many rows."""
    found = list(pieces)
    counts = (piece.count() for piece in found) if limit is not None else each(Slice.count, found)
    numbered, total, path, first = [], 0, "", 0
    for piece, (num_lines, rows) in zip(found, counts, strict=False):
        first = first if piece.path == path else 0
        path = piece.path
        taken = rows if limit is None else min(rows, limit - total)
        if taken:
            at = first if piece.kind == "lines" else piece.first
            numbered.append(replace(piece, first=at, limit=taken))
        first += num_lines
        total += taken
        if total == limit:
            break
    return numbered, total


@dataclass(frozen=True)
class _Look:
    hashes: np.ndarray  # int64, of the rows for which `where` holds
    undefined: int  # rows for which it has no value
    names: set[str]  # those of its columns that are in a row


def _look(piece: Slice) -> _Look:
    if piece.source.where is None:
        return _Look(hashes(piece.name, piece.numbers()), 0, set())
    where = compiled(piece.source.where)
    numbers, undefined, names = [], 0, set[str]()
    for number, record in piece.records(where.columns):
        row = columns_of(record)
        holds = True if row is None else where.of(row)
        if row is not None:
            names.update(name for name in where.columns if name in row)
        undefined += holds is None
        if holds:
            numbers.append(number)
    return _Look(hashes(piece.name, np.asarray(numbers, np.uint64)), undefined, names)


def _taken(pieces: list[Slice], rows: int, source: Source, each: Each, notices: list[str]) -> tuple[list[Slice], int]:
    looks: list[_Look] = list(each(_look, pieces))
    if source.where is not None:
        _check_where(source, pieces, looks, notices)
    found = np.concatenate([look.hashes for look in looks])
    below = None
    if isinstance(source.take, float):
        below = int(source.take * 2**63) if source.take < 1 else None
    elif source.take is not None and source.take < len(found):
        below = int(np.partition(found, source.take)[source.take])  # as many as are asked for lie below it
    elif source.take is not None and source.take > len(found):
        notices.append(f"{source.label} has {len(found)} rows to take, and take asks for {source.take}: all are taken")
    taken = len(found) if below is None else int((found < below).sum())
    if not taken:
        why = f"where: {source.where}" if not len(found) else f"take: {source.take}"
        raise RecipeError(f"of the {rows} rows of {source.source} none is taken ({why})")
    return [replace(piece, below=below) for piece in pieces], taken


def _check_where(source: Source, pieces: list[Slice], looks: list[_Look], notices: list[str]) -> None:
    known = set().union(*(look.names for look in looks))
    first = next((row for _, record in pieces[0].records() if (row := columns_of(record))), {})
    if error := _unknown_column(source, [first], known):
        raise error
    if undefined := sum(look.undefined for look in looks):
        notices.append(
            f"where: {source.where} has no value in {undefined} rows of {source.label}, where a column "
            "is null or of another type; they are not taken"
        )
