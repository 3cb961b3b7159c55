"""The prompts of named held-out sets, as hashes: what is trained on must not have them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from stages.shard.tokenization import hash_of

_HASH = "S16"  # bytes of a hash, which is all that is kept of a prompt


def prompt_hash(prompt_ids: Sequence[int]) -> bytes:
    return bytes.fromhex(hash_of(prompt_ids, [], []))


def write_prompts(prompts: Iterable[Sequence[int]], path: Path) -> None:
    """Leave the prompts of a slice of a held-out set."""
    with path.open("wb") as file:
        np.save(file, _hashes(prompts))


def read_prompts(paths: Iterable[Path]) -> np.ndarray:
    """[prompts], sorted: what slices have left."""
    return np.unique(np.concatenate([np.empty(0, _HASH), *map(np.load, paths)]))


def are_among(prompts: Sequence[Sequence[int]], held_out: np.ndarray) -> np.ndarray:
    """[rows] bool; `held_out` as read_prompts gives them."""
    if not len(held_out):
        return np.zeros(len(prompts), bool)
    asked = _hashes(prompts)
    at = np.searchsorted(held_out, asked)
    return np.asarray(held_out[np.minimum(at, len(held_out) - 1)] == asked)


def _hashes(prompts: Iterable[Sequence[int]]) -> np.ndarray:
    found = b"".join(map(prompt_hash, prompts))
    return np.frombuffer(found, _HASH) if found else np.empty(0, _HASH)
