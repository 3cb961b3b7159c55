"""The loss of one optimizer step, whose pairs are spread over micro-batches and ranks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from stages import schema
from stages.logps.model import PairLogprobs
from stages.train.objective.losses import LabelledLogps, Logps, Memory, PairLogps, losses_of, remembered
from stages.train.objective.named.loss import Loss
from stages.train.pairs.batch import Batch


@dataclass(frozen=True)
class Work:
    """What this rank computes in one forward pass."""

    batch: Callable[[], Batch]  # made when it is needed: a step's batches together are large
    positions: torch.Tensor  # [b] int64, of its pairs in the batch of the step
    weights: torch.Tensor  # [b] float32: 1, or 0 where a pair only keeps this rank in step with the others


class StepLoss:
    """A loss whose gradient is the same however a step's pairs are spread.

    Where the loss of a pair depends on the other pairs, all are seen first, without gradients: the slopes of the loss
    at their log-probs are then the factors of the pass with gradients. All ranks call the same methods in the same
    order.
    """

    def __init__(
        self,
        loss: Loss,
        model: PairLogprobs,
        work: Sequence[Work],
        num_pairs: int,
        memory: Memory,
        group: dist.ProcessGroup | None = None,
    ):
        """`group`: the ranks that compute different pairs; None: all."""
        self.loss, self.model, self.work, self.num_pairs, self.memory = loss, model, work, num_pairs, memory
        self._group = group
        self._tokens = 0  # that this rank has computed
        self.data_seconds = 0.0  # that this rank has waited for pairs
        self._squares = any(getattr(term, "wpo", False) for term in loss.terms)
        self._mean_length = self._measure() if any(term.of_step_tokens for term in loss.terms) else 1.0
        self._parts: list[Logps] = []  # what this rank has seen of its work
        self._slopes: tuple[torch.Tensor | None, ...] | None = None

    def look(self) -> tuple[Logps, torch.Tensor]:
        """All pairs of the step and their losses [num_pairs], the same on all ranks, from a pass without gradients."""
        with torch.no_grad():
            seen = self._gathered([self._see(work)[0] for work in self.work])
            return seen, losses_of(seen, self.loss, self.memory)

    def learn(self, work: Work) -> tuple[torch.Tensor, Batch, torch.Tensor]:
        """(scalar with the gradient of the weighted losses of `work`, summed; its batch; its log-probs a token [N])."""
        if self.loss.coupled and self._slopes is None:
            self._slopes = self._find_slopes()
        seen, batch, token_logps = self._see(work)
        self._parts.append(type(seen)(*(column.detach() for column in seen)))
        if self._slopes is None:
            return (work.weights * self._weighted(seen)).sum(), batch, token_logps
        of_columns = [
            (work.weights * slope[work.positions] * column).sum()
            for slope, column in zip(self._slopes, seen, strict=True)
            if slope is not None and column.requires_grad
        ]
        return torch.stack(of_columns).sum(), batch, token_logps

    def learned(self) -> tuple[Logps, torch.Tensor]:
        """The same as `look`, of what `learn` has seen of all work."""
        seen = self._gathered(self._parts)
        return seen, losses_of(seen, self.loss, self.memory)

    def all_tokens(self) -> int:
        """Tokens that all ranks have computed."""
        total = torch.tensor(self._tokens, device=self.work[0].weights.device)
        dist.all_reduce(total, group=self._group)
        return int(total)

    def _find_slopes(self) -> tuple[torch.Tensor | None, ...]:
        seen, _ = self.look()
        self.memory = self.memory | remembered(seen, self.loss, self.memory)
        leaves = type(seen)(*(column.requires_grad_() for column in seen))
        total = self._weighted(leaves).sum()
        return torch.autograd.grad(total, list(leaves), allow_unused=True)

    def _weighted(self, seen: Logps) -> torch.Tensor:
        """[B]: each pair's loss times its weight, which is what is minimised. What is reported are the losses."""
        return seen.weight.detach() * losses_of(seen, self.loss, self.memory)

    def _see(self, work: Work) -> tuple[Logps, Batch, torch.Tensor]:
        asked = time.perf_counter()
        batch = work.batch()
        self.data_seconds += time.perf_counter() - asked
        self._tokens += batch.layout.num_tokens
        values = self.model(batch.layout, self._squares)
        token_logps, log_squares = values if self._squares else (values, None)
        return logps_of(batch, token_logps, log_squares, self._mean_length), batch, token_logps

    def _measure(self) -> float:
        """Trained tokens of a chosen completion, the mean over the step."""
        lengths = [(work.weights * work.batch().layout.lengths()[0]).sum() for work in self.work]
        total = torch.stack(lengths).sum()
        dist.all_reduce(total, group=self._group)
        return total.item() / self.num_pairs

    def _gathered(self, parts: Sequence[Logps]) -> Logps:
        """What all ranks have seen, in the order of the step's batch."""
        kind = type(parts[0])
        table = torch.zeros(self.num_pairs, len(kind._fields), device=parts[0][0].device)
        for work, seen in zip(self.work, parts, strict=True):
            own = work.weights > 0
            table[work.positions[own]] = torch.stack(list(seen), 1)[own]
        dist.all_reduce(table, group=self._group)  # of each row, all ranks but one have zeros
        return kind(*table.unbind(1))


def logps_of(
    batch: Batch, token_logps: torch.Tensor, log_squares: torch.Tensor | None = None, mean_length: float = 1.0
) -> Logps:
    """What the losses see of a batch whose tokens [N] have these log-probs."""
    layout = batch.layout
    first, second = layout.sums(token_logps)
    nothing = torch.zeros_like(first)
    if batch.sides == schema.LABELLED_SIDES:
        return LabelledLogps(first, second, *batch.ref_logps, batch.grade, batch.weights, nothing)
    lengths, in_tail = layout.lengths(), layout.in_tail()
    alignment = nothing
    if log_squares is not None:
        sums = layout.sums((token_logps - log_squares).detach())
        alignment = sums[0] / lengths[0] + sums[1] / lengths[1]
    return PairLogps(
        first, second, *layout.sums(token_logps * in_tail),
        *batch.ref_logps, *layout.sums(batch.ref_token_logps * in_tail),
        *lengths, torch.full_like(first, mean_length), batch.grade, alignment, batch.weights, nothing,
    )  # fmt: skip
