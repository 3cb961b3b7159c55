"""Losses of labelled completions against a reference: one loss a completion, [B].

In the equations r = beta * log(policy / reference), s the sigmoid.
"""

import torch
from torch.nn.functional import logsigmoid

from stages.train.objective.losses.logps import LabelledLogps
from stages.train.objective.named import labelled as named


def _weighed(
    seen: LabelledLogps, loss: named._Labelled, desirable: torch.Tensor, undesirable: torch.Tensor
) -> torch.Tensor:
    return torch.where(seen.label > 0, loss.desirable_weight * desirable, loss.undesirable_weight * undesirable)


def kto(seen: LabelledLogps, loss: named.Kto) -> torch.Tensor:
    """1 - s(r - z) where desirable, 1 - s(z - r) where not. KTO, Ethayarajh et al. 2024 (2402.01306), equation 7.

    z = max(0, mean over the step of r of mismatched completions), without gradient: beta times the KL to the reference.
    """
    kl = seen.mismatched_logratios.mean().clamp(min=0).detach()
    above = loss.beta * (seen.logratios - kl)
    return _weighed(seen, loss, torch.sigmoid(-above), torch.sigmoid(above))


def apo_zero_unpaired(seen: LabelledLogps, loss: named.ApoZeroUnpaired) -> torch.Tensor:
    """1 - s(r) where desirable, s(r) where not. APO, D'Oosterlinck et al. 2024 (2408.06266), equation 7, unpaired."""
    reward = loss.beta * seen.logratios
    return _weighed(seen, loss, torch.sigmoid(-reward), torch.sigmoid(reward))


def bco(seen: LabelledLogps, loss: named.Bco) -> torch.Tensor:
    """-log s(r - d) where desirable, -log s(d - r) where not. BCO, Jung et al. 2024 (2404.04656).

    d is the middle between the mean rewards of both kinds over all steps so far.
    """
    above = loss.beta * seen.logratios - seen.memory
    return _weighed(seen, loss, -logsigmoid(above), -logsigmoid(-above))


def bco_memory(seen: LabelledLogps, loss: named.Bco, memory: dict[str, float]) -> dict[str, float]:
    """d with the rewards of this step in it: running means of both kinds, and their counts."""
    rewards, after = loss.beta * seen.logratios, dict(memory)
    for kind, wanted in (("desirable", seen.label > 0), ("undesirable", seen.label <= 0)):
        seen_before, now = memory.get(f"{kind}_count", 0.0), float(wanted.sum())
        if now:
            total = memory.get(kind, 0.0) * seen_before + rewards[wanted].sum().item()
            after |= {kind: total / (seen_before + now), f"{kind}_count": seen_before + now}
    means = [after[kind] for kind in ("desirable", "undesirable") if kind in after]
    return after | {"value": sum(means) / len(means)}
