"""Which tokens of a completion are trained: flat spans of its ids, [start, stop, start, stop, ..], sorted and apart.

The others, a user's or a tool's turn in the middle of a completion, are context. [0, n] is the whole completion.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

Spans = Sequence[int]


def whole(length: int) -> list[int]:
    return [0, length]


def of(trained: Sequence[bool], lengths: Sequence[int]) -> list[int]:
    """Of pieces of a completion that are trained or not, and so many ids long; neighbours are one span."""
    found: list[int] = []
    at = 0
    for is_trained, length in zip(trained, lengths, strict=True):
        if is_trained and length:
            if found and found[-1] == at:
                found[-1] += length
            else:
                found += [at, at + length]
        at += length
    return found


def pieces(spans: Spans) -> Iterator[tuple[int, int]]:
    """(start, stop) of each span."""
    return zip(spans[::2], spans[1::2], strict=True)


def count(spans: Spans) -> int:
    """Trained tokens."""
    return sum(spans[1::2]) - sum(spans[::2])


def cut(spans: Spans, length: int) -> list[int]:
    """Of a completion that is cut after `length` tokens; empty where none that is trained is left."""
    return [min(edge, length) for start, stop in pieces(spans) if start < length for edge in (start, stop)]


def told(ids: Sequence[Sequence[int]], trained: Sequence[Spans]) -> Sequence[Spans]:
    """What an id of some completions tells of their spans: nothing, where all of each is trained."""
    return () if all(list(spans) == whole(len(side)) for side, spans in zip(ids, trained, strict=True)) else trained


def marks(length: int, spans: Spans) -> np.ndarray:
    """[length] bool: whether a token is trained."""
    found = np.zeros(length, bool)
    for start, stop in pieces(spans):
        found[start:stop] = True
    return found


def counts(column: pa.ChunkedArray) -> np.ndarray:
    """[rows] int64: trained tokens of each row of a column of spans."""
    flat, ends = _flat(column)
    sums = np.concatenate([[0], np.cumsum(flat[1::2] - flat[::2])])
    return np.diff(sums[ends // 2], prepend=0)


def stops(column: pa.ChunkedArray) -> np.ndarray:
    """[rows] int64: where the last trained token of each row ends. What comes after it is looked at by nobody."""
    flat, ends = _flat(column)
    return flat[ends - 1]


def problem(column: pa.ChunkedArray, lengths: np.ndarray) -> str | None:
    """What is wrong with the spans of completions of `lengths` [rows] tokens, if anything is: of the first such row."""
    sizes = _array(column).value_lengths().to_numpy()
    if len(bad := np.flatnonzero((sizes == 0) | (sizes % 2 == 1))):
        size = sizes[bad[0]]
        said = f"has {size} edges of spans, of which one has no other" if size else "has no span: no token is trained"
        return f"row {bad[0]} {said}"
    flat, ends = _flat(column)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    grows = np.diff(flat) > 0
    grows[ends[:-1] - 1] = True  # from one row to the next
    inside = (flat >= 0) & (flat <= lengths[rows])
    inside[1:] &= grows
    if inside.all():
        return None
    row = int(rows[np.argmin(inside)])
    spans = flat[ends[row] - sizes[row] : ends[row]].tolist()
    return f"row {row} has the spans {spans}, which are not sorted, apart and inside its {lengths[row]} tokens"


def _array(column: pa.ChunkedArray) -> pa.ListArray:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(all edges int64, where each row's end [rows])."""
    array = _array(column)
    return array.flatten().to_numpy().astype(np.int64), np.cumsum(array.value_lengths().to_numpy(), dtype=np.int64)
