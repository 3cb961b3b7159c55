"""Attention over stretches by a kernel call each: what CPUs take, and GPUs where the variable-length kernel cannot.

Nothing is computed that a mask would throw away, but for the corner of each stretch.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from stages.logps.layout import Stretches

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    stretches: Stretches,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """query [1, heads, T, D], key and value [1, kv_heads, T, D], sinks [heads] -> [1, T, heads, D]."""
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    fused = softcap is None and query.device.type == "cpu" and query.shape[-1] == value.shape[-1]
    if fused and (learns or sinks is not None):
        output: torch.Tensor = _OneByOne.apply(query, key, value, sinks, stretches, scaling, window)
        return output
    by_scores = softcap is not None or sinks is not None
    grouped = not by_scores and not torch.is_grad_enabled()
    if not grouped:
        key, value = (_for_each_head(tensor, query) for tensor in (key, value))
    queries, keys, values = (tensor.split(stretches.lengths, dim=2) for tensor in (query, key, value))
    outputs = []
    for i, shared in enumerate(stretches.shared):
        q, k, v = queries[i], keys[i], values[i]
        if shared:
            k, v = (torch.cat([each[i - 1][:, :, :shared], each[i]], 2) for each in (keys, values))
        if by_scores:
            output = _by_scores(q, k, v, _mask(stretches, q, k, window), scaling, softcap, sinks)
        else:
            whole, mask = _how(stretches, q, k, shared, window)
            output = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=whole, scale=scaling, enable_gqa=grouped
            )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, 1)


class _OneByOne(torch.autograd.Function):
    """The same with gradients, on CPUs: autograd would fill a tensor of zeros for the gradient of each slice.

    Key and value heads are repeated for the kernel, which shares work between threads by heads, and not kept so.

    A sink is one more score of a head's queries, of a key without a value. So with s the log of the sum over the keys'
    scores, and s' that over the sink's as well, the output is the kernel's times exp(s - s'). And where the kernel's
    backward pass is told that output and s', it takes the probabilities below s' for its own, which are the right ones.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
        stretches: Stretches,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        output = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        keys, values = (_for_each_head(tensor, query).split(stretches.lengths, 2) for tensor in (key, value))
        sums, start = [], 0
        for i, (length, shared) in enumerate(zip(stretches.lengths, stretches.shared, strict=True)):
            q, k, v = query[:, :, start : start + length], _context(keys, i, shared), _context(values, i, shared)
            whole, mask = _how(stretches, q, k, shared, window)
            made, log_sum = _forward(q, k, v, 0.0, whole, attn_mask=mask, scale=scaling)
            if sinks is not None:
                with_sink = torch.logaddexp(log_sum, sinks.to(log_sum.dtype)[:, None])
                made, log_sum = made * (log_sum - with_sink).exp()[..., None], with_sink
            output[:, start : start + length] = made.transpose(1, 2)
            sums.append(log_sum)
            start += length
        ctx.save_for_backward(query, key, value, sinks, output, *sums)
        ctx.stretches, ctx.scaling, ctx.window = stretches, scaling, window
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, sinks, output, *sums = ctx.saved_tensors
        stretches: Stretches = ctx.stretches
        gradient, output = gradient.transpose(1, 2), output.transpose(1, 2)
        of_query, of_key, of_value = (torch.empty_like(query, memory_format=torch.contiguous_format) for _ in range(3))
        keys, values = (_for_each_head(tensor, query).split(stretches.lengths, 2) for tensor in (key, value))
        before = start = 0
        for i, (length, shared) in enumerate(zip(stretches.lengths, stretches.shared, strict=True)):
            own = (slice(None), slice(None), slice(start, start + length))
            k, v = _context(keys, i, shared), _context(values, i, shared)
            whole, mask = _how(stretches, query[own], k, shared, ctx.window)
            of_query[own], of_k, of_v = _backward(
                gradient[own], query[own], k, v, output[own], sums[i], 0.0, whole, attn_mask=mask, scale=ctx.scaling
            )
            for whole_of, part in ((of_key, of_k), (of_value, of_v)):
                whole_of[own] = part[:, :, shared:]
                if shared:  # which the stretch before has written
                    whole_of[:, :, before : before + shared] += part[:, :, :shared]
            before, start = start, start + length
        of_sinks = None
        if ctx.needs_input_grad[3]:
            share = (sinks.to(sums[0].dtype)[:, None] - torch.cat(sums, 2)).exp()  # of each query that its sink takes
            of_sinks = -(share * (gradient * output).sum(-1)).sum((0, 2)).to(sinks.dtype)
        groups = key.shape[1], -1
        return (
            of_query,
            of_key.unflatten(1, groups).sum(2),
            of_value.unflatten(1, groups).sum(2),
            of_sinks,
            None,
            None,
            None,
        )


def _for_each_head(tensor: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    times = query.shape[1] // tensor.shape[1]
    return tensor if times == 1 else tensor.repeat_interleave(times, 1)


def _context(stretches: tuple[torch.Tensor, ...], i: int, shared: int) -> torch.Tensor:
    return torch.cat([stretches[i - 1][:, :, :shared], stretches[i]], 2) if shared else stretches[i]


def _how(
    stretches: Stretches, query: torch.Tensor, key: torch.Tensor, shared: int, window: int | None
) -> tuple[bool, torch.Tensor | None]:
    """Whether the kernel's own causal mask says it all; else the mask."""
    whole = not shared and (window is None or window >= key.shape[2])
    return whole, None if whole else _mask(stretches, query, key, window)


def _mask(stretches: Stretches, query: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor:
    """[queries, keys], 0 where a query may look and -inf elsewhere; the last query stands at the last key."""
    queries, keys = query.shape[2], key.shape[2]
    wanted = (queries, keys, window, query.dtype, query.device)
    if wanted not in stretches.masks:
        positions = torch.arange(keys, device=query.device)
        distance = positions[-queries:, None] - positions
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        stretches.masks[wanted] = torch.zeros_like(hidden, dtype=query.dtype).masked_fill_(hidden, -torch.inf)
    return stretches.masks[wanted]


def _by_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Gemma 2: scores pass through softcap * tanh(scores / softcap); fused kernels for this need CUDA.

    gpt-oss: a sink is a score that takes its share, and gives nothing.
    """
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)], 3)
    shares = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return shares[..., : key.shape[2]] @ value
