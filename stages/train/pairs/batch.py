"""Some pairs, as the model and the losses take them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from stages import schema
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
    weights: torch.Tensor  # [B] float32: of each pair in the loss

    @classmethod
    def of(cls, rows: list[dict[str, Any]], model: PairLogprobs, device: torch.device) -> "Batch":
        """`rows` as PairSet.read gives them, laid out for `model`, with every tensor on `device`.

        Spans that are left out are of whole completions, and a weight that is left out is 1.
        """
        first, second = sides = schema.sides(rows[0])
        layout = model.lay_out(
            [(row["prompt_ids"], row[f"{first}_ids"], row[f"{second}_ids"]) for row in rows],
            [(row.get(f"{first}_trained"), row.get(f"{second}_trained")) for row in rows],
        )

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
            floats(row.get("weight", 1.0) for row in rows),
        )
