"""The pairs of a split, zipped with their reference log-probs: any number of them, a few parts at hand at a time."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages import schema
from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.train.pairs.node_cache import NodeCache

Counts = dict[str, np.ndarray]  # [parts] int64, of each split

SPLITS = ("train", "eval")  # there are always these; "eval/<name>" of named held-out sets where there are any
_NOT_TRAINED_ON = ["split", "source_row", "error"]
_THREADS = 8  # that count: reading two narrow columns of a part is mostly waiting


class Part(NamedTuple):
    path: Path  # in the node's cache
    rows: pa.Table
    lengths: np.ndarray  # [rows] int64, tokens of each pair


class PairSet:
    """Pairs are numbered through the parts, in their order: those of the split that have log-probs, where it has any.

    And with `positive_margin` those alone whose margin is above 0.

    Parts come in through the node's cache, checked row by row, when they are asked for or ahead of that.
    """

    def __init__(
        self,
        pairs: PreferencePairs,
        logprobs: ReferenceLogprobs | None,
        split: str,
        cache: NodeCache | None = None,
        counts: Counts | None = None,
        positive_margin: bool = False,
    ):
        """`counts` are those of `count_pairs`, where somebody has them."""
        self._pairs, self._logprobs, self._split, self._positive_margin = pairs, logprobs, split, positive_margin
        self._cache, self._names = cache or NodeCache(None), pairs.parts
        self.counts = (counts or count_pairs(pairs, logprobs, positive_margin))[split]
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._open: dict[int, Part] = {}
        self._ahead: dict[int, Future[Part]] = {}
        self._thread = ThreadPoolExecutor(1, "prefetch")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def keep(self, parts: Sequence[int]) -> None:
        """Make `parts` ready in the background, and let go of all others."""
        for number in (self._open.keys() | self._ahead.keys()) - set(parts):
            self._let_go(number)
        for number in parts:
            if number not in self._open and number not in self._ahead:
                self._ahead[number] = self._thread.submit(self._bring, number)

    def close(self) -> None:
        self.keep([])
        self._thread.shutdown()

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """[n] int64: tokens of each of some pairs."""
        found = np.empty(len(numbers), np.int64)
        for part, places, rows in self._located(numbers):
            found[places] = part.lengths[rows]
        return found

    def ids(self, numbers: np.ndarray) -> list[str]:
        return list(self._column("pair_id", numbers))

    def sources(self, numbers: np.ndarray) -> np.ndarray:
        """[n] of str: where each of some pairs was read from."""
        return np.array(self._pairs.sources_of(self._column("source", numbers).tolist()), object)

    def digest(self, numbers: np.ndarray) -> str:
        """Of the ids of some pairs, in their order: 12 hex digits."""
        return hashlib.sha256("".join(self.ids(numbers)).encode()).hexdigest()[:12]

    def read(self, numbers: np.ndarray) -> list[dict]:
        """Some pairs in their order, with the columns of schema.PAIRS or LABELLED and LOGPROBS that training needs."""
        found = np.empty(len(numbers), object)
        for part, places, rows in self._located(numbers):
            for place, row in zip(places, part.rows.take(pa.array(rows)).to_pylist(), strict=True):
                found[place] = row
        return list(found)

    def _column(self, name: str, numbers: np.ndarray) -> np.ndarray:
        found = np.empty(len(numbers), object)
        for part, places, rows in self._located(numbers):
            found[places] = part.rows[name].take(pa.array(rows)).to_pylist()
        return found

    def _located(self, numbers: np.ndarray) -> Iterable[tuple[Part, np.ndarray, np.ndarray]]:
        """(part, which of `numbers` lie in it, their rows there), part by part."""
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        for number in np.unique(owners).tolist():
            places = np.flatnonzero(owners == number)
            yield self._part(number), places, numbers[places] - self._starts[number]

    def _part(self, number: int) -> Part:
        if number not in self._open:
            ahead = self._ahead.pop(number, None)
            self._open[number] = ahead.result() if ahead else self._bring(number)
        return self._open[number]

    def _let_go(self, number: int) -> None:
        ahead = self._ahead.pop(number, None)
        if ahead and ahead.cancel():
            return
        part = self._open.pop(number, None) or (ahead.result() if ahead else None)
        if part:
            self._cache.drop(part.path)

    def _bring(self, number: int) -> Part:
        name = self._names[number]
        sources = [each.folder / name for each in (self._pairs, self._logprobs) if each is not None]
        kept = f"{self._split}{' margin > 0' * self._positive_margin} without {_NOT_TRAINED_ON}"
        path = self._cache.path(f"{kept} {name}", sources)
        rows = self._cache.table(path, lambda: self._joined(name))
        return Part(path, rows, np.sum(schema.num_tokens(rows), axis=0))

    def _joined(self, name: str) -> pa.Table:
        table = self._pairs.read(name)
        wanted = pc.equal(table["split"], self._split)
        if self._logprobs is not None:
            scored = self._logprobs.read(name, table)
            for column in scored.column_names[1:]:
                table = table.append_column(column, scored[column])
            wanted = pc.and_(wanted, pc.is_null(table["error"]))
        if self._positive_margin:
            wanted = pc.and_(wanted, _above_zero(table["margin"]))
        return table.filter(wanted).drop_columns([each for each in _NOT_TRAINED_ON if each in table.column_names])


def count_pairs(pairs: PreferencePairs, logprobs: ReferenceLogprobs | None, positive_margin: bool = False) -> Counts:
    """How many pairs of each split that are in its PairSet each part has. Reads no token."""

    def count(part: str) -> dict[str, int]:
        table = pairs.columns(part, ["split", *(["margin"] if positive_margin else [])])
        wanted = pc.is_valid(table["split"]) if logprobs is None else pc.is_null(logprobs.errors(part))
        if positive_margin:
            wanted = pc.and_(wanted, _above_zero(table["margin"]))
        found = pc.value_counts(table["split"].filter(wanted)).to_pylist()
        return {each["values"]: each["counts"] for each in found}

    with ThreadPoolExecutor(_THREADS) as pool:
        counts = list(pool.map(count, pairs.parts))
    named = sorted({split for each in counts for split in each} - set(SPLITS))
    return {split: np.array([each.get(split, 0) for each in counts], np.int64) for split in (*SPLITS, *named)}


def _above_zero(margins: pa.ChunkedArray) -> pa.ChunkedArray:
    """A triple that says nothing of its margin has none."""
    return pc.fill_null(pc.greater(margins, 0.0), False)
