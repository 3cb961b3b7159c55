"""Context parallel: a row's tokens spread over ranks, that have all of them, for a part of the heads, in attention.

Rank r of C holds tokens r, r + C, ..: what is computed token by token (projections, feed-forward, experts, the head)
is then spread evenly, wherever in the row the completions stand. Around attention tokens and heads change places
(Ulysses, Jacobs et al., 2309.14509, equations of section 3), so that each rank computes whole stretches, with their
windows and caps, for its heads.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from stages.errors import RecipeError


@dataclass(frozen=True)
class Exchange:
    """Of the ranks of `group`, which all compute the same row, each its tokens."""

    group: dist.ProcessGroup

    @property
    def rank(self) -> int:
        return self.group.rank()

    @property
    def size(self) -> int:
        return self.group.size()

    def check(self, heads: int, name: str) -> None:
        """Raises RecipeError where the query heads cannot be shared out."""
        if heads % self.size:
            fits = [str(degree) for degree in range(1, heads + 1) if heads % degree == 0]
            raise RecipeError(
                f"cluster.train.context_parallel is {self.size}, and does not divide the {heads} attention heads of "
                f"{name}. Set it to one of {', '.join(fits)}"
            )

    def own(self, row: torch.Tensor) -> torch.Tensor:
        """[1, T] -> [1, T / C]: this rank's tokens."""
        return row[:, self.rank :: self.size]

    def for_heads(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """query [1, heads, T / C, D], key and value [1, kv_heads, T / C, D] -> [1, heads / C, T, D] and so on.

        Key and value heads that are too few, or do not come out even, are repeated first.
        """
        copies = math.lcm(key.shape[1], self.size) // key.shape[1]
        if copies > 1:
            key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
        query, key, value = (
            _Swap.apply(states[0].transpose(0, 1), self.group, True).transpose(0, 1)[None]
            for states in (query, key, value)
        )
        return query, key, value

    def own_heads(self, numbers: torch.Tensor) -> torch.Tensor:
        """[heads] -> [heads / C]: those of the heads that this rank has in attention."""
        return numbers.unflatten(0, (self.size, -1))[self.rank]

    def for_tokens(self, states: torch.Tensor) -> torch.Tensor:
        """Attention's output [1, T, heads / C, D] -> [1, T / C, heads, D]."""
        swapped: torch.Tensor = _Swap.apply(states[0], self.group, False)
        return swapped[None]

    def holds(self, sources: torch.Tensor) -> torch.Tensor:
        """Which of some places in the row [N], -1 for nowhere, this rank has: indices [n]."""
        return ((sources >= 0) & (sources % self.size == self.rank)).nonzero()[:, 0]

    def joined(self, values: torch.Tensor, where: torch.Tensor, count: int) -> torch.Tensor:
        """Values [.., n] of indices `where` [n], other ranks have the others -> [.., count], the same on all ranks.

        A gradient goes to the own values alone: each rank's backward pass is that of its tokens, and the sum over ranks
        is the whole. Of each value all ranks but one have zero, so nothing is rounded.
        """
        own = values.new_zeros(*values.shape[:-1], count).index_copy(-1, where, values)
        whole = own.detach().clone()
        dist.all_reduce(whole, group=self.group)
        return own + (whole - own.detach())


class _Swap(torch.autograd.Function):
    """[T / C, heads, D] -> [T, heads / C, D] `to_heads`, or back; linear, and its own transpose."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, group: dist.ProcessGroup, to_heads: bool) -> torch.Tensor:
        ctx.group, ctx.to_heads = group, to_heads
        split = (group.size(), -1) if to_heads else (-1, group.size())
        sent = states.unflatten(1 if to_heads else 0, split).transpose(0, 1).contiguous()
        received = torch.empty_like(sent)
        # As bytes: not every backend sends every type.
        dist.all_to_all_single(received.view(torch.uint8), sent.view(torch.uint8), group=group)
        return received.transpose(0, 1).flatten(*((0, 1) if to_heads else (1, 2)))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _Swap.apply(gradient, ctx.group, not ctx.to_heads), None, None
