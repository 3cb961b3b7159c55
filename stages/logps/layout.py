"""Pairs -> the tensors of one forward pass: a padded row a completion, and where its tokens are predicted."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Ids = Sequence[int]


@dataclass(frozen=True)
class Layout:
    """B pairs as 2B rows: row 2i is [prompt | chosen] of pair i, row 2i + 1 [prompt | rejected]; padded on the right.

    N is the number of completion tokens; they stand in the order of the rows.
    """

    input_ids: torch.Tensor  # [2B, L] int64
    attention_mask: torch.Tensor  # [2B, L] int64, 0 at padding
    sources: torch.Tensor  # [N] int64, flat position in [2B * L] of the token that predicts target n
    targets: torch.Tensor  # [N] int64, ids of the completion tokens
    owners: torch.Tensor  # [N] int64, row of target n

    @property
    def num_rows(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device) -> "Layout":
        return Layout(*(tensor.to(device) for tensor in vars(self).values()))

    def sums(self, token_logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-token values [N] -> (chosen [B], rejected [B]), summed over each completion."""
        rows = token_logps.new_zeros(self.num_rows).index_add(0, self.owners, token_logps)
        return rows[0::2], rows[1::2]

    def split(self, token_logps: torch.Tensor) -> list[torch.Tensor]:
        """Per-token values [N] -> 2B tensors, one a row: chosen, rejected, chosen, ..."""
        return list(token_logps.split(torch.bincount(self.owners, minlength=self.num_rows).tolist()))


def pack(pairs: Sequence[tuple[Ids, Ids, Ids]]) -> Layout:
    """Lay out pairs given as (prompt_ids, chosen_ids, rejected_ids), none of them empty."""
    rows = [(prompt, side) for prompt, chosen, rejected in pairs for side in (chosen, rejected)]
    length = max(len(prompt) + len(side) for prompt, side in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    sources, targets, owners = [], [], []
    for row, (prompt, side) in enumerate(rows):
        end = len(prompt) + len(side)
        input_ids[row, :end] = torch.tensor([*prompt, *side])
        attention_mask[row, :end] = 1
        start = row * length + len(prompt) - 1
        sources.append(torch.arange(start, start + len(side)))
        targets.append(torch.tensor(side))
        owners.append(torch.full((len(side),), row))
    return Layout(input_ids, attention_mask, torch.cat(sources), torch.cat(targets), torch.cat(owners))
