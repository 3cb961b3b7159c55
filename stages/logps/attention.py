"""Attention over the stretches of a packed row, as a transformers attention function: models use it unchanged.

Each stretch is a causal attention of its queries over its context, which ends with them: what the model itself would
compute on the two sequences of the pair. A sliding window is a distance within the context, a soft cap acts on scores,
and a sink is one score more, so all three are expressed exactly.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig

from stages.logps.exchange import Exchange
from stages.logps.layout import Stretches
from stages.logps.one_by_one import one_by_one

NAME = "raydpo_stretches"
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def why_not(model_class: type, config: PreTrainedConfig) -> str | None:
    """Why this model's attention cannot be computed over stretches; None where it can."""
    if not getattr(model_class, "_supports_attention_backend", False):
        return "its attention is not reached by transformers' attention interface"
    if getattr(config, "alibi", False) or getattr(config, "position_embedding_type", "") == "alibi":
        return "it adds position biases to scores (ALiBi)"
    if other := set(getattr(config, "layer_types", None) or []) - _KNOWN_LAYERS:
        return f"it has layers of type {', '.join(sorted(other))}"
    return None


@torch.compiler.disable  # a loop over lengths that change each batch: nothing in it for a compiler to fuse
def stretch_attention(
    module: nn.Module,  # noqa: ARG001
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    *,
    stretches: Stretches,
    exchange: Exchange | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, T, D], key and value [1, kv_heads, T, D] -> ([1, T, heads, D], None).

    With `exchange` they hold this rank's tokens of the row; the heads are shared out meanwhile. `s_aux`: sinks [heads].
    Raises NotImplementedError where the model asks for what this does not compute (biases, dropout).
    """
    if dropout or any(others.get(name) is not None for name in ("position_bias", "alibi", "head_mask")):
        raise NotImplementedError("position biases, head masks and dropout are not supported")
    if exchange is not None:
        query, key, value = exchange.for_heads(query, key, value)
        s_aux = None if s_aux is None else exchange.own_heads(s_aux)
    if softcap is None and s_aux is None and _has_kernel(query, value):
        from torch.nn.attention.varlen import varlen_attn

        output = over_stretches(varlen_attn, query, key, value, stretches, scaling, sliding_window)
    else:
        output = one_by_one(query, key, value, stretches, scaling, sliding_window, softcap, s_aux)
    return (output if exchange is None else exchange.for_tokens(output)), None


AttentionInterface.register(NAME, stretch_attention)


def _has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return takes(query.shape[-1], value.shape[-1], torch.cuda.get_device_capability(query.device))


def takes(head_size: int, value_size: int, capability: tuple[int, int]) -> bool:
    """Whether variable-length flash attention is for such heads and such a GPU: latent attention (DeepSeek), say, has
    larger keys than values."""
    return head_size == value_size <= 256 and head_size % 8 == 0 and capability >= (8, 0)


def over_stretches(
    kernel: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    stretches: Stretches,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """One call of torch.nn.attention.varlen.varlen_attn, or of a `kernel` with its signature.

    Its causal mask is aligned to the end of the context, as ours is.
    """
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, heads, D]
    grouped: dict[str, bool] = {}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in signature(kernel).parameters:
            grouped = {"enable_gqa": True}
        else:  # torch before 2.12
            key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1) for tensor in (key, value))
    output = kernel(
        query, key.index_select(0, stretches.context), value.index_select(0, stretches.context),
        stretches.length_ends, stretches.context_ends, max(stretches.lengths), max(stretches.contexts),
        scale=scaling, window_size=(-1 if window is None else window - 1, 0), **grouped,
    )  # fmt: skip
    assert isinstance(output, torch.Tensor)
    return output[None]
