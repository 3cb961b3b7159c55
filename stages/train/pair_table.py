"""The training set: pairs zipped with their reference log-probs, part by part, every row checked."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stages import schema
from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.logps.layout import Layout
from stages.logps.model import PairLogprobs


@dataclass(frozen=True)
class Batch:
    """Some pairs, laid out for the model, with what the reference said of them: zeros where it was not asked."""

    pair_ids: list[str]
    sides: tuple[str, str]  # names of the two completions of a pair, in order
    layout: Layout
    ref_logps: tuple[torch.Tensor, torch.Tensor]  # of both sides [B] float32
    ref_token_logps: torch.Tensor  # [N] float32, in the layout's order
    grade: torch.Tensor  # [B] float32: the pair's margin, or the completion's label

    @classmethod
    def of(cls, rows: list[dict[str, Any]], model: PairLogprobs, device: torch.device) -> "Batch":
        first, second = sides = schema.sides(rows[0])
        layout = model.lay_out([(row["prompt_ids"], row[f"{first}_ids"], row[f"{second}_ids"]) for row in rows])

        def floats(values: Iterable[float]) -> torch.Tensor:
            return torch.tensor(list(values), dtype=torch.float32, device=device)

        if f"ref_{first}_logps" in rows[0]:
            ref_logps = [[row[f"ref_{side}_logps"] for row in rows] for side in sides]
            token_logps = [value for row in rows for side in sides for value in row[f"ref_{side}_token_logps"]]
        else:
            ref_logps, token_logps = [[0.0] * len(rows)] * 2, [0.0] * len(layout.targets)
        return cls(
            [row["pair_id"] for row in rows],
            sides,
            layout.to(device),
            (floats(ref_logps[0]), floats(ref_logps[1])),
            floats(token_logps),
            floats(row["margin" if sides == schema.PAIR_SIDES else "label"] or 0.0 for row in rows),
        )


class PairTable:
    """All pairs of one split, in the order of parts and rows; those that have log-probs, where these are given."""

    def __init__(self, pairs: PreferencePairs, logprobs: ReferenceLogprobs | None, split: str):
        parts = []
        for part in pairs.parts:
            table = pairs.read(part)
            if logprobs is not None:
                scored = logprobs.read(part, table)
                for name in scored.column_names[1:]:
                    table = table.append_column(name, scored[name])
                table = table.filter(pc.is_null(table["error"]))
            parts.append(table.filter(pc.equal(table["split"], split)))
        self._table = pa.concat_tables(parts)
        prompt, first, second = (
            pc.list_value_length(self._table[f"{name}_ids"]).to_numpy()
            for name in ("prompt", *schema.sides(self._table.column_names))
        )
        self.lengths = prompt + first + second  # [pairs] tokens

    def __len__(self) -> int:
        return len(self._table)

    def ids(self, rows: np.ndarray) -> list[str]:
        ids: list[str] = self._table["pair_id"].take(pa.array(rows)).to_pylist()
        return ids

    def digest(self, rows: np.ndarray) -> str:
        """Of the ids of some pairs, in their order: 12 hex digits."""
        return hashlib.sha256("".join(self.ids(rows)).encode()).hexdigest()[:12]

    def batch(self, rows: np.ndarray, model: PairLogprobs, device: torch.device) -> Batch:
        """The pairs of `rows`, laid out for `model`, with every tensor on `device`."""
        return Batch.of(self._table.take(pa.array(rows)).to_pylist(), model, device)
