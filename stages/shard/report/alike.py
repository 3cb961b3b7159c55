"""Pairs that speak against each other, and held-out prompts that training nearly has, over all parts of a set.

Each part leaves its hashes in small sorted files. They are merged in ranges of the hash, so that memory does not grow
with the set.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rensa import RMinHash

from stages import schema
from stages.shard.hashes import U64, flat, joined, mixed, of_lists, of_ngrams, of_text

SHINGLE = 5  # tokens
BANDS, ROWS = 8, 8  # of MinHash values: half of all prompts with a Jaccard similarity of 0.74 meet, of 0.9 nearly all
COMMON = 0.2  # shingles in more of a part's prompts than this are its template's, and say nothing
FEW = 20  # prompts, of which none can be common
AT_ONCE = 2**18  # rows in memory, several times over while they are sorted and joined

# A completion that is not there (of a labelled row) is 0.
_VERDICT = np.dtype([("prompt", U64), ("chosen", U64), ("rejected", U64), ("row", U64)])
_BAND = np.dtype([("band", U64), ("prompt", U64), ("held_out", np.bool_)])


def write_hashes(pairs: pa.Table, path: Path, held_out: bool) -> None:
    """Of one part, to `path` with further suffixes. `held_out`: prompts are compared with those held out."""
    prompts = of_lists(pairs["prompt_ids"])
    first, second = (of_lists(pairs[f"{side}_ids"]) for side in schema.sides(pairs.column_names))
    if "label" in pairs.column_names:
        label = pairs["label"].to_numpy()
        first, second = np.where(label, first, U64(0)), np.where(label, U64(0), first)
    sources = pc.dictionary_encode(pairs["source"]).combine_chunks()
    names = np.array([of_text(name) for name in sources.dictionary.to_pylist()], U64)
    rows = joined(names[sources.indices.to_numpy()], pairs["source_row"].to_numpy())
    _save(path.with_suffix(".verdicts.npy"), _table(_VERDICT, prompts, first, second, rows), "prompt")
    if held_out:
        bands = _bands(pairs["prompt_ids"], prompts, pc.not_equal(pairs["split"], "train").to_numpy())
        _save(path.with_suffix(".bands.npy"), bands, "band")


def facts_of(folder: Path) -> dict[str, Any]:
    """What the hashes of all parts say; counts, which do not depend on the division into parts' order or work."""
    prompts = swapped = contradicting = 0
    for rows in _ranges(sorted(folder.glob("*.verdicts.npy")), _VERDICT, "prompt"):
        prompts += len(np.unique(rows["prompt"]))
        swapped += _swapped(rows)
        contradicting += _contradicting(rows)
    told: dict[str, Any] = {"prompts": prompts, "swapped": swapped, "contradicting": contradicting}
    bands = sorted(folder.glob("*.bands.npy"))
    if bands:
        near = [_near(rows) for rows in _ranges(bands, _BAND, "band")]
        told["near_duplicates"] = len(np.unique(np.concatenate(near))) if near else 0
    return told


def _swapped(rows: np.ndarray) -> int:
    """Couples of completions of one prompt that are there in both orders."""
    prompt, chosen, rejected = rows["prompt"], rows["chosen"], rows["rejected"]
    both = (chosen != 0) & (rejected != 0)
    order = np.unique(joined(prompt[both], chosen[both], rejected[both]))
    other = np.unique(joined(prompt[both], rejected[both], chosen[both]))
    return int(np.isin(order, other, assume_unique=True).sum()) // 2


def _contradicting(rows: np.ndarray) -> int:
    """Completions that one row prefers and another one does not, under one prompt.

    Of a row that makes several pairs, one completion may be both, and contradicts nothing.
    """
    keys, chosen, sources = [], [], []
    for side in ("chosen", "rejected"):
        there = rows[rows[side] != 0]
        keys.append(joined(there["prompt"], there[side]))
        chosen.append(np.full(len(there), side == "chosen"))
        sources.append(there["row"])
    key, is_chosen, source = (np.concatenate(each) for each in (keys, chosen, sources))
    if not len(key):
        return 0
    order = np.argsort(key, kind="stable")
    key, is_chosen, source = key[order], is_chosen[order], source[order]
    start = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    any_chosen, all_chosen = np.logical_or.reduceat(is_chosen, start), np.logical_and.reduceat(is_chosen, start)
    several = np.minimum.reduceat(source, start) != np.maximum.reduceat(source, start)
    return int((any_chosen & ~all_chosen & several).sum())


def _near(rows: np.ndarray) -> np.ndarray:
    """Held-out prompts that share a band with one that is trained on."""
    bands = rows["band"]
    trained = np.unique(bands[~rows["held_out"]])
    return np.unique(rows["prompt"][rows["held_out"] & np.isin(bands, trained)])


def _bands(prompt_ids: pa.ChunkedArray, prompts: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """BANDS rows a prompt: a hash of ROWS of its MinHash values."""
    _, once = np.unique(prompts, return_index=True)
    ids, starts = flat(prompt_ids.take(pa.array(once)))
    shingles, starts = of_ngrams(mixed(ids), starts, SHINGLE)
    if len(once) >= FEW:
        shingles, starts = _telling(shingles, starts, COMMON * len(once))
    made = RMinHash.digest_matrix_from_flat_token_hashes(shingles, starts.astype(U64), BANDS * ROWS, 42)
    minima = np.array(made.to_rows(), dtype=U64).reshape(len(once), BANDS, ROWS)
    told = np.diff(starts) > 0  # nothing is left of a prompt that is all template
    found = [
        _table(_BAND, mixed(joined(*minima[told, band].T) ^ U64(band)), prompts[once][told], held_out[once][told])
        for band in range(BANDS)
    ]
    return np.concatenate(found)


def _telling(shingles: np.ndarray, starts: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray]:
    """Without those that stand in about more than `most` rows."""
    places = (shingles >> U64(44)).astype(np.int64)  # 2^20: that a rare one shares that of a common one is rare enough
    rare = np.bincount(places, minlength=2**20)[places] <= most
    upto = np.concatenate([[0], np.cumsum(rare)])
    return shingles[rare], upto[starts]


def _ranges(paths: Sequence[Path], dtype: np.dtype, key: str) -> Iterator[np.ndarray]:
    """All rows of the files, a range of `key` at a time: about AT_ONCE of them."""
    total = sum(len(np.load(path, mmap_mode="r")) for path in paths)
    number = -(-total // AT_ONCE)
    edges = np.array([(2**64 * i) // number for i in range(1, number)], U64)
    cuts = [_cuts(np.load(path, mmap_mode="r")[key], edges) for path in paths]
    for i in range(number):
        rows = [np.empty(0, dtype)]
        for path, cut in zip(paths, cuts, strict=True):
            if cut[i] < cut[i + 1]:
                rows.append(np.array(np.load(path, mmap_mode="r")[cut[i] : cut[i + 1]]))
        yield np.concatenate(rows)


def _cuts(keys: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[edges + 2]: where the ranges between the edges begin in sorted keys, and where the last one ends."""
    return np.concatenate([[0], np.searchsorted(keys, edges), [len(keys)]])


def _table(dtype: np.dtype, *columns: np.ndarray) -> np.ndarray:
    made = np.empty(len(columns[0]), dtype)
    for name, column in zip(dtype.names or (), columns, strict=True):
        made[name] = column
    return made


def _save(path: Path, rows: np.ndarray, key: str) -> None:
    """Sorted by `key`, which is what `_ranges` needs; whole, if it is there."""
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        np.save(file, np.sort(rows, order=key))
    unfinished.rename(path)
