"""Attention over variable lengths as torch documents it, a sequence at a time: what a kernel is compared with."""

import torch


def by_definition(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """torch.nn.attention.varlen.varlen_attn, of any dtype on any device.

    Query i of n looks at keys j of m where i + m - n is at most `window_size` before and after j; -1 is no bound.
    """
    assert {cu_seq_q.dtype, cu_seq_k.dtype} == {torch.int32}
    assert (max_q, max_k) == (cu_seq_q.diff().max(), cu_seq_k.diff().max())
    assert (cu_seq_q[-1], cu_seq_k[-1]) == (len(query), len(key))
    assert enable_gqa or query.shape[1] == key.shape[1]
    key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1) for tensor in (key, value))
    before, after = (float("inf") if bound < 0 else bound for bound in window_size)
    of_queries, of_keys = (ends.diff().tolist() for ends in (cu_seq_q, cu_seq_k))
    found = []
    for q, k, v in zip(query.split(of_queries), key.split(of_keys), value.split(of_keys), strict=True):
        queries, keys = (torch.arange(length, device=query.device) for length in (len(q), len(k)))
        distance = queries[:, None] + len(k) - len(q) - keys
        scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        scores = scores.masked_fill((distance > before) | (-distance > after), -torch.inf)
        found.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(found)
