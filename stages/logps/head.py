"""Hidden states -> log-probs of given target tokens, in chunks: no [tokens, vocabulary] tensor is ever whole."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedConfig

from stages.logps.embedding import gathered
from stages.logps.linear import Linear, linear

CHUNK = 2**26  # logits alive at a time: 256 MiB in float32, which is 512 rows at a vocabulary of 128k
_BLOCK = 8192  # tokens of the vocabulary


@dataclass(frozen=True)
class LogitRule:
    """What a model does to its head's output before the softmax."""

    scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "LogitRule":
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies
        scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite divides
        return cls(scale, getattr(config, "final_logit_softcapping", None))  # Gemma 2

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Float32, or float64 if they are, in a tensor that the caller may overwrite."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        return logits if self.soft_cap is None else logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)

    def slope_(self, gradient: torch.Tensor, capped: torch.Tensor | None) -> torch.Tensor:
        """Gradient with respect to what this rule gave -> with respect to the head's output. In place."""
        if self.soft_cap is not None and capped is not None:
            gradient.mul_(1 - (capped / self.soft_cap).square_())
        return gradient.mul_(self.scale) if self.scale != 1.0 else gradient


class Head(Linear):
    """A model's head that gives log-probs of targets; a method, so that FSDP can take it for a unit's forward pass."""

    def target_logps(
        self, hidden: torch.Tensor, targets: torch.Tensor, rule: LogitRule, squares: bool = False
    ) -> torch.Tensor:
        return target_logps(self, hidden, targets, rule, squares=squares)


def target_logps(
    head: nn.Linear,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    rule: LogitRule,
    chunk: int = CHUNK,
    squares: bool = False,
) -> torch.Tensor:
    """log p[targets], where p = softmax(rule(head(hidden))).

    hidden [N, H] any float dtype, targets [N] int64 -> [N] float32, nats. With `squares` [2, N]: in the second row the
    log of the sum of p squared, without gradient, which is how sure the model is of its next token.

    At most `chunk` logits exist at a time. The softmax runs in float32. The backward pass computes logits again, but
    for the last chunk, whose probabilities are still there: where all rows fit into one chunk, nothing is computed
    twice. Where the weight has a gradient already, this one is added to it in place (embedding.py): so `backward` is
    the way to ask for it, and torch.autograd.grad only where there is none.
    """
    rows = max(1, chunk // head.out_features)
    logps, log_squares = _TargetLogps.apply(hidden, head.weight, head.bias, targets, rule, rows, squares)
    return logps if log_squares is None else torch.stack([logps, log_squares])


class _TargetLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        rule: LogitRule,
        rows: int,
        squares: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logps, log_squares, last = [], [], None
        for part, ids in zip(hidden.split(rows), targets.split(rows), strict=True):
            last = None  # its memory serves the next chunk
            last = _Chunk(_logits(part, weight, bias), ids, rule)
            logps.append(last.logps)
            if squares:
                log_squares.append(last.log_squares())
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.rule, ctx.rows = rule, rows
        ctx.last = last if any(ctx.needs_input_grad) else None
        if not squares:
            return torch.cat(logps), None
        second = torch.cat(log_squares)
        ctx.mark_non_differentiable(second)
        return torch.cat(logps), second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        chunk, ctx.last = ctx.last, None
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        earlier = gathered(weight) if wants_weight else None
        of_weight, of_bias = earlier, None  # chunks are added up in float32
        for start in reversed(range(0, len(hidden), ctx.rows)):
            piece = slice(start, start + ctx.rows)
            chunk = chunk or _Chunk(_logits(hidden[piece], weight, bias), targets[piece], ctx.rule)
            of_output = chunk.backward_(gradient[piece]).to(weight.dtype)
            chunk = None
            if of_hidden is not None:
                of_hidden[piece] = linear(of_output, weight.t())
            if wants_weight:
                of_weight = _added(of_weight, of_output, hidden[piece])
            if wants_bias:
                total = of_output.float().sum(0)
                of_bias = total if of_bias is None else of_bias.add_(total)
            del of_output
        of_weight = None if of_weight is None or of_weight is earlier else of_weight.to(weight.dtype)
        of_bias = None if of_bias is None else of_bias.to(bias.dtype)
        return of_hidden, of_weight, of_bias, None, None, None, None


def _added(total: torch.Tensor | None, of_output: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """`total` [V, H] float32 plus of_output [n, V] transposed times hidden [n, H], in place.

    A block of the vocabulary at a time: the whole product is as large as the weight, and alive when activations are.
    """
    if total is None:
        return linear(of_output.t(), hidden.t()).float()
    for block, rows in zip(total.split(_BLOCK), of_output.split(_BLOCK, dim=1), strict=True):
        block.add_(linear(rows.t(), hidden.t()))
    return total


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """hidden [n, H], weight [V, H] -> [n, V]; float32 on GPUs, whatever the dtype of both.

    A GPU adds up in float32 anyway. Logits rounded to bfloat16 are off by up to 0.4% of themselves: vLLM's float32 head
    gives others, and a second copy would be needed for the softmax.
    """
    if not weight.is_cuda or weight.dtype == torch.float32:
        return linear(hidden, weight, bias)
    logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    return logits if bias is None else logits.add_(bias)


class _Chunk:
    """The softmax of some rows of logits, in the memory where the logits were."""

    def __init__(self, output: torch.Tensor, targets: torch.Tensor, rule: LogitRule):
        logits = rule(output)
        self.rule, self.targets = rule, targets[:, None]
        self.capped = None if rule.soft_cap is None else logits.clone()  # the cap's slope needs them
        largest = logits.amax(1, keepdim=True)
        at_target = logits.gather(1, self.targets) - largest
        self.exponents = logits.sub_(largest).exp_()
        self.sums = self.exponents.sum(1, keepdim=True)
        self.logps = (at_target - self.sums.log())[:, 0]

    def log_squares(self) -> torch.Tensor:
        """Log of the sum of the squared probabilities [n]."""
        return 2 * (torch.linalg.vector_norm(self.exponents, dim=1).log() - self.sums[:, 0].log())

    def backward_(self, gradient: torch.Tensor) -> torch.Tensor:
        """Gradient of logps [n] -> of the head's output [n, vocabulary], float32. Overwrites the softmax."""
        gradient = gradient[:, None]
        of_logits = self.exponents.mul_(-gradient / self.sums).scatter_add_(1, self.targets, gradient)
        return self.rule.slope_(of_logits, self.capped)
