"""The prompts of named held-out sets, as hashes: what is trained on must not have them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stages.shard.tokenization import hash_of

HASH = "S16"  # bytes of a hash, which is all that is kept of a prompt


def prompt_hash(prompt_ids: Sequence[int]) -> bytes:
    return bytes.fromhex(hash_of(list(prompt_ids), [], []))


def prompts_of(tokenized: Any) -> np.ndarray:
    """[prompts], sorted: of a Ray dataset of tokenized rows."""
    batches = tokenized.map_batches(_hashes, batch_format="pyarrow").iter_batches(batch_format="pyarrow")
    found = [np.frombuffer(b"".join(batch["prompt"].to_pylist()), HASH) for batch in batches if len(batch)]
    return np.unique(np.concatenate(found)) if found else np.empty(0, HASH)


def are_among(prompts: Sequence[Sequence[int]], held_out: np.ndarray) -> list[bool]:
    if not len(held_out):
        return [False] * len(prompts)
    asked = np.frombuffer(b"".join(map(prompt_hash, prompts)), HASH)
    at = np.searchsorted(held_out, asked)
    return (held_out[np.minimum(at, len(held_out) - 1)] == asked).tolist()


def _hashes(rows: pa.Table) -> pa.Table:
    prompts = [ids for ids in rows["prompt_ids"].to_pylist() if ids is not None]
    return pa.table({"prompt": pa.array(map(prompt_hash, prompts), pa.binary())})
