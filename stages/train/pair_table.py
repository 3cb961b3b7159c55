"""The training set: pairs zipped with their reference log-probs, part by part, every row checked."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.logps.layout import Layout
from stages.logps.model import PairLogprobs


@dataclass(frozen=True)
class Batch:
    """Some pairs, laid out for the model, with what the reference said of them."""

    pair_ids: list[str]
    layout: Layout
    ref_chosen_logps: torch.Tensor  # [B] float32
    ref_rejected_logps: torch.Tensor  # [B] float32
    ref_token_logps: torch.Tensor  # [N] float32, in the layout's order

    @classmethod
    def of(cls, rows: list[dict[str, Any]], model: PairLogprobs, device: torch.device) -> "Batch":
        token_logps = [
            value for row in rows for side in ("chosen", "rejected") for value in row[f"ref_{side}_token_logps"]
        ]
        return cls(
            [row["pair_id"] for row in rows],
            model.lay_out([(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows]).to(device),
            torch.tensor([row["ref_chosen_logps"] for row in rows], dtype=torch.float32, device=device),
            torch.tensor([row["ref_rejected_logps"] for row in rows], dtype=torch.float32, device=device),
            torch.tensor(token_logps, dtype=torch.float32, device=device),
        )


class PairTable:
    """All pairs of one split that have log-probs, in the order of parts and rows."""

    def __init__(self, pairs: PreferencePairs, logprobs: ReferenceLogprobs, split: str):
        parts = []
        for part in pairs.parts:
            table = pairs.read(part)
            scored = logprobs.read(part, table)
            for name in scored.column_names[1:]:
                table = table.append_column(name, scored[name])
            parts.append(table.filter(pc.and_(pc.equal(table["split"], split), pc.is_null(table["error"]))))
        self._table = pa.concat_tables(parts)
        prompt, chosen, rejected = (
            pc.list_value_length(self._table[f"{name}_ids"]).to_numpy() for name in ("prompt", "chosen", "rejected")
        )
        self.lengths = prompt + chosen + rejected  # [pairs] tokens

    def __len__(self) -> int:
        return len(self._table)

    def digest(self, rows: np.ndarray) -> str:
        """Of the ids of some pairs, in their order: 12 hex digits."""
        ids = self._table["pair_id"].take(pa.array(rows)).to_pylist()
        return hashlib.sha256("".join(ids).encode()).hexdigest()[:12]

    def batch(self, rows: np.ndarray, model: PairLogprobs, device: torch.device) -> Batch:
        """The pairs of `rows`, laid out for `model`, with every tensor on `device`."""
        return Batch.of(self._table.take(pa.array(rows)).to_pylist(), model, device)
