"""Linear layers whose frozen weights take four bits each: NF4 (Dettmers et al., QLoRA, 2305.14314).

A row of a weight is cut into blocks of 64. A number is one of 16 levels, the quantiles of a normal distribution, times
the largest magnitude of its block. A row knows nothing of others: so FSDP shards rows, and each rank quantizes those
that it reads, to the same numbers as any other.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from stages.errors import RecipeError
from stages.logps.linear import linear

BLOCK = 64
LEVELS = (  # table 6 of the paper
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_AT_ONCE = 2**22  # numbers that are quantized at a time


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[out, in] -> (codes [out, in / 2] uint8, scales [out, in / 64] bfloat16).

    Of two numbers in a byte, the earlier one is in its upper half.
    """
    levels = torch.tensor(LEVELS, device=weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    codes, scales = [], []
    for rows in weight.split(max(1, _AT_ONCE // weight.shape[1])):
        blocks = rows.float().unflatten(1, (-1, BLOCK))
        largest = blocks.abs().amax(-1).bfloat16()
        shares = blocks / largest.float().clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        found = torch.bucketize(shares, between, out_int32=True).flatten(1).to(torch.uint8)
        codes.append(found[:, 0::2] << 4 | found[:, 1::2])
        scales.append(largest)
    if not codes:  # a rank without rows
        return weight.new_empty(0, weight.shape[1] // 2, dtype=torch.uint8), weight.new_empty(
            0, weight.shape[1] // BLOCK, dtype=torch.bfloat16
        )
    return torch.cat(codes), torch.cat(scales)


def dequantize(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What `quantize` gave -> [out, in] of `dtype`."""
    levels = torch.tensor(LEVELS, device=codes.device)
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], 1)  # of each byte
    numbers = nn.functional.embedding(codes.int(), pairs).flatten(1).unflatten(1, (-1, BLOCK))
    return (numbers * scales.float()[..., None]).flatten(1).to(dtype)


def dequantized(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by name; those of quantized layers as they compute, in float32."""
    found: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        layer, _, kind = name.rpartition(".")
        scales = weights.get(f"{layer}.scales")
        if kind == "codes" and scales is not None:
            found[f"{layer}.weight"] = dequantize(weight, scales, torch.float32)
        elif kind != "scales" or f"{layer}.codes" not in weights:
            found[name] = weight
    return found


class Nf4(nn.Module):
    """What was a linear layer; its weights are frozen."""

    codes: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = _Product.apply(x, self.codes, self.scales, self.bias)
        return output

    @classmethod
    def take_over(cls, layer: nn.Linear) -> None:
        """A layer on the meta device is one of this class from now on; its weights are read later."""
        out, width = layer.weight.shape
        del layer.weight
        codes = torch.empty(out, width // 2, dtype=torch.uint8, device="meta")
        scales = torch.empty(out, width // BLOCK, dtype=torch.bfloat16, device="meta")
        layer.__class__ = cls  # type: ignore[assignment]
        layer.codes, layer.scales = (nn.Parameter(each, requires_grad=False) for each in (codes, scales))


class _Product(torch.autograd.Function):
    """The weights are made again for the backward pass: kept, they would be those of all layers."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(codes, scales)
        return linear(x, dequantize(codes, scales, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        codes, scales = ctx.saved_tensors
        return linear(gradient, dequantize(codes, scales, gradient.dtype).t()), None, None, None


def quantize_layers(causal_lm: PreTrainedModel, name: str) -> None:
    """Make all linear layers but the head ones of four bits, those under adapters too; on the meta device.

    Raises RecipeError where there is none, where its weights do not divide into blocks, and where experts are stacked:
    these are no linear layers, and would stay as large as they are.
    """
    if stacked := next((key for key, weight in causal_lm.named_parameters() if weight.ndim == 3), None):
        raise RecipeError(
            f"quantize: nf4 is of linear layers, and {name} has stacked experts ({stacked}). Leave it out"
        )
    head = causal_lm.get_output_embeddings()
    layers = {
        key: module
        for key, module in causal_lm.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in key
    }
    if not layers:
        raise RecipeError(f"quantize: nf4 is of linear layers, and {name} ({type(causal_lm).__name__}) has none")
    for key, layer in layers.items():
        if layer.weight.device.type != "meta":
            raise RecipeError(
                f"quantize: nf4 reads {name} from safetensors, and it had to be read as a whole (see the log)"
            )
        if layer.in_features % BLOCK:
            raise RecipeError(
                f"quantize: nf4 cuts rows into blocks of {BLOCK}, and {key} of {name} has rows of {layer.in_features}"
            )
        Nf4.take_over(layer)
