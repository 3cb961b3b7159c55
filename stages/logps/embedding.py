"""A look-up of rows whose gradient, on CPUs, is added to that of earlier micro-batches: its rows, not a whole one."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class Embedding(nn.Embedding):
    """An nn.Embedding that adds the gradient of its rows in place, where there is a gradient already."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.weight.device.type != "cpu" or not self.weight.requires_grad:
            return super().forward(ids)
        rows: torch.Tensor = _Rows.apply(self.weight, ids, self.padding_idx)
        return rows

    @classmethod
    def take_over(cls, layer: nn.Embedding) -> None:
        """Make a plain embedding of a loaded model, with its weights, one of this class."""
        if layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse:
            layer.__class__ = cls


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor, padding: int | None) -> torch.Tensor:
        ctx.save_for_backward(weight, ids)
        ctx.padding = -1 if padding is None else padding  # its row does not learn
        return functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        weight, ids = ctx.saved_tensors
        total = gathered(weight)
        if total is None:
            of_weight = torch.ops.aten.embedding_dense_backward(gradient, ids, len(weight), ctx.padding, False)
            return of_weight, None, None
        learns = ids != ctx.padding
        total.index_add_(0, ids[learns], gradient[learns].to(total.dtype))
        return None, None, None


def gathered(weight: torch.Tensor) -> torch.Tensor | None:
    """What earlier micro-batches of a step have left of a weight's gradient, to add to; None where nothing is there.

    A gradient that autograd adds up is as large as the weight, and where a weight has two uses it waits for the other.
    """
    plain = weight.is_leaf and type(weight.grad) is torch.Tensor and weight.grad.dtype == torch.float32
    return weight.grad if plain else None
