"""Rewards under other divergences than the reverse KL: f-DPO, Wang et al. 2023 (2309.16240), table 1."""

import math

import torch
from torch.nn.functional import logsigmoid

_LARGEST = 40.0  # exponents past it are cut off: the square of exp(40) is finite in float32


def rewards(logratios: torch.Tensor, divergence: str, alpha: float | None) -> torch.Tensor:
    """f'(u) of u = policy / reference, from log u, up to a constant: chosen so that it is 0 where u is 1.

    reverse_kl: log u. forward_kl: 1 - 1 / u. js: log(2u / (1 + u)). alpha: (u^(alpha - 1) - 1) / (alpha - 1).

    In a difference of rewards the constant cancels. Where each is divided by its completion's length (sigmoid_norm,
    ipo) it does not, and this choice is a part of the loss, as it is in TRL: another constant c would add
    c (1 / |w| - 1 / |l|). With it, a policy that is the reference has a difference of 0 there too.
    """
    if divergence == "reverse_kl":
        return logratios
    if divergence == "js":
        return math.log(2) + logsigmoid(logratios)
    power = -1.0 if divergence == "forward_kl" or alpha is None else alpha - 1
    return torch.expm1((power * logratios).clamp(max=_LARGEST)) / power
