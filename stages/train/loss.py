"""The DPO loss: Rafailov et al. 2023, equation 7; with label smoothing, Mitchell 2023 (conservative DPO)."""

from typing import NamedTuple

import torch
from torch.nn.functional import logsigmoid


class DpoLoss(NamedTuple):
    losses: torch.Tensor  # [B] float32
    chosen_rewards: torch.Tensor  # [B] float32, beta * (policy - reference), without gradient
    rejected_rewards: torch.Tensor


def dpo_loss(
    chosen_logps: torch.Tensor,
    rejected_logps: torch.Tensor,
    ref_chosen_logps: torch.Tensor,
    ref_rejected_logps: torch.Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> DpoLoss:
    """One loss a pair, from log-probs summed over each completion ([B] float32, nats)."""
    pi_logratios = chosen_logps - rejected_logps
    ref_logratios = ref_chosen_logps - ref_rejected_logps
    logits = pi_logratios - ref_logratios
    losses = -logsigmoid(beta * logits) * (1 - label_smoothing) - logsigmoid(-beta * logits) * label_smoothing
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps).detach()
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps).detach()
    return DpoLoss(losses, chosen_rewards, rejected_rewards)
