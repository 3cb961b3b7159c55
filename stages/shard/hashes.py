"""64-bit hashes of numbers, of token id lists and of their n-grams, many rows at a time."""

import zlib
from typing import Any

import numpy as np
import pyarrow as pa

U64 = np.uint64
ODD = U64(0x9E3779B97F4A7C15)


def mixed(values: Any) -> np.ndarray:
    """A bijection of 64-bit words in which every bit depends on all (splitmix64; Steele, Lea, Flood, 2014)."""
    with np.errstate(over="ignore"):
        z = np.asarray(values).astype(U64) + ODD
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
    return z ^ (z >> U64(31))


def joined(*columns: np.ndarray) -> np.ndarray:
    """One hash of several, in which their order counts."""
    total = np.zeros(len(columns[0]), U64)
    for column in columns:
        total = mixed(total ^ column.astype(U64))
    return total


def of_lists(lists: pa.ChunkedArray) -> np.ndarray:
    """Of each list of ids: [rows] uint64."""
    ids, starts = flat(lists)
    lengths = np.diff(starts)
    position = np.arange(len(ids)) - np.repeat(starts[:-1], lengths)
    words = mixed(mixed(ids) ^ position.astype(U64))
    upto = np.concatenate([np.zeros(1, U64), np.cumsum(words, dtype=U64)])
    return joined(upto[starts[1:]] - upto[starts[:-1]], lengths.astype(U64))


def of_ngrams(words: np.ndarray, starts: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, starts) of the n-grams in each row of `words`; a shorter row is one n-gram, an empty one none."""
    lengths = np.diff(starts)
    counts = np.where(lengths >= n, lengths - n + 1, np.minimum(lengths, 1))
    made = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    first = np.arange(made[-1]) + np.repeat(starts[:-1] - made[:-1], counts)
    padded = np.concatenate([words, np.zeros(n, U64)])
    total = np.zeros(len(words), U64)
    for step in range(n):  # at every position, across rows too: what ends beyond its row is not taken
        total = total * ODD + padded[step : step + len(words)]
    hashes = total[first]
    for row in np.flatnonzero((lengths < n) & (lengths > 0)):
        hashes[made[row]] = joined(*words[starts[row] : starts[row + 1], None])[0]
    return mixed(hashes), made


def flat(lists: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(values, starts): row i has values[starts[i]:starts[i + 1]]."""
    whole = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], lists.type)
    starts = whole.offsets.to_numpy().astype(np.int64)
    return whole.values.to_numpy()[starts[0] : starts[-1]], starts - starts[0]


def of_text(text: str) -> int:
    """32 bits, the same in every process."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))
