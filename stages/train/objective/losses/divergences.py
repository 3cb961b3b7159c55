"""Rewards under other divergences than the reverse KL: f-DPO, Wang et al. 2023 (2309.16240), table 1."""

import math

import torch
from torch.nn.functional import logsigmoid

_LARGEST = 40.0  # exponents past it are cut off: the square of exp(40) is finite in float32


def rewards(logratios: torch.Tensor, divergence: str, alpha: float | None) -> torch.Tensor:
    """f'(u) of u = policy / reference, from log u, up to a constant that cancels in a difference.

    reverse_kl: log u. forward_kl: 1 - 1 / u. js: log(2u / (1 + u)). alpha: (u^(alpha - 1) - 1) / (alpha - 1).
    """
    if divergence == "reverse_kl":
        return logratios
    if divergence == "js":
        return math.log(2) + logsigmoid(logratios)
    power = -1.0 if divergence == "forward_kl" or alpha is None else alpha - 1
    return torch.expm1((power * logratios).clamp(max=_LARGEST)) / power
