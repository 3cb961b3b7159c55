"""Losses of pairs against a reference: one loss a pair, [B].

In the equations r = beta * log(policy / reference) of a completion, w is chosen, l is rejected, s the sigmoid.
"""

import torch
from torch.nn.functional import logsigmoid, relu

from stages.train.objective.losses.divergences import rewards
from stages.train.objective.losses.logps import PairLogps
from stages.train.objective.named import paired as named


def smoothed(logits: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """-(1 - e) log s(logits) - e log s(-logits): the logistic loss where a share e of the labels is wrong."""
    return -logsigmoid(logits) * (1 - label_smoothing) - logsigmoid(-logits) * label_smoothing


def _scores(seen: PairLogps, loss: named._OfDifference) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards of both sides without beta."""
    kind = loss.divergence, loss.divergence_alpha
    return rewards(seen.chosen_logratios, *kind), rewards(seen.rejected_logratios, *kind)


def _difference(seen: PairLogps, loss: named._OfDifference) -> torch.Tensor:
    if loss.divergence == "reverse_kl":
        return seen.logits
    chosen, rejected = _scores(seen, loss)
    return chosen - rejected


def _mean_difference(seen: PairLogps, loss: named._OfDifference) -> torch.Tensor:
    chosen, rejected = _scores(seen, loss)
    return chosen / seen.chosen_length - rejected / seen.rejected_length


def sigmoid(seen: PairLogps, loss: named.Sigmoid) -> torch.Tensor:
    """DPO: -log s(r_w - r_l). Rafailov et al. 2023 (2305.18290), equation 7.

    With label smoothing: conservative DPO, Mitchell 2023, "A note on DPO with noisy preferences".
    """
    return smoothed(loss.beta * _difference(seen, loss), loss.label_smoothing)


def sigmoid_norm(seen: PairLogps, loss: named.SigmoidNorm) -> torch.Tensor:
    """Length-normalised DPO: -log s(r_w / |w| - r_l / |l|). Lambert et al. 2024 (Tulu 3, 2411.15124).

    With label smoothing as in DPO's, as open-instruct has it.
    """
    return smoothed(loss.beta * _mean_difference(seen, loss), loss.label_smoothing)


def robust(seen: PairLogps, loss: named.Robust) -> torch.Tensor:
    """-((1 - e) log s(r_w - r_l) - e log s(r_l - r_w)) / (1 - 2e): unbiased where a share e of the labels is flipped.

    Chowdhury et al. 2024 (2403.00409).
    """
    logits, error = loss.beta * _difference(seen, loss), loss.label_smoothing
    return (-logsigmoid(logits) * (1 - error) + logsigmoid(-logits) * error) / (1 - 2 * error)


def hinge(seen: PairLogps, loss: named.Hinge) -> torch.Tensor:
    """max(0, 1 - (r_w - r_l)). SLiC, Zhao et al. 2023 (2305.10425), as in RSO, Liu et al. 2023 (2309.06657)."""
    return relu(1 - loss.beta * _difference(seen, loss))


def ipo(seen: PairLogps, loss: named.Ipo) -> torch.Tensor:
    """(log-ratio a token of w - of l - 1 / (2 beta))^2. Azar et al. 2023 (2310.12036), equation 17; beta is its tau.

    Means instead of sums over tokens are what its authors use, as TRL was told by them.
    """
    return (_mean_difference(seen, loss) - 1 / (2 * loss.beta)) ** 2


def exo_pair(seen: PairLogps, loss: named.ExoPair) -> torch.Tensor:
    """KL((s(r_w - r_l), s(r_l - r_w)) || (1 - e, e)). EXO, Ji et al. 2024 (2402.00856), equation 16."""
    logits, error = loss.beta * _difference(seen, loss), torch.tensor(loss.label_smoothing, device=seen.chosen.device)
    wins = logits.sigmoid() * (logsigmoid(logits) - torch.log1p(-error))
    return wins + (-logits).sigmoid() * (logsigmoid(-logits) - torch.log(error))


def discopop(seen: PairLogps, loss: named.Discopop) -> torch.Tensor:
    """-(1 - m) log s(d) + m exp(-d), with d = r_w - r_l and m = s(d / tau). Lu et al. 2024 (2406.08414), equation 5."""
    logits = loss.beta * _difference(seen, loss)
    exponential = torch.exp(logsigmoid(logits / loss.tau) - logits)  # tau < 1: the exponent is never large
    return exponential - logsigmoid(logits) * torch.sigmoid(-logits / loss.tau)


def nca_pair(seen: PairLogps, loss: named.NcaPair) -> torch.Tensor:
    """-log s(r_w) - (log s(-r_w) + log s(-r_l)) / 2. NCA, Chen et al. 2024 (2402.05369)."""
    chosen, rejected = loss.beta * seen.chosen_logratios, loss.beta * seen.rejected_logratios
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(seen: PairLogps, loss: named.BcoPair) -> torch.Tensor:
    """-log s(r_w) - log s(-r_l): BCO without its shift of rewards. Jung et al. 2024 (2404.04656)."""
    return -logsigmoid(loss.beta * seen.chosen_logratios) - logsigmoid(-loss.beta * seen.rejected_logratios)


def sppo_hard(seen: PairLogps, loss: named.SppoHard) -> torch.Tensor:
    """(log-ratio of w - 1 / (2 beta))^2 + (log-ratio of l + 1 / (2 beta))^2: wins are certain.

    SPPO, Wu et al. 2024 (2405.00675), equation 4.7.
    """
    target = 1 / (2 * loss.beta)
    return (seen.chosen_logratios - target) ** 2 + (seen.rejected_logratios + target) ** 2


def apo_zero(seen: PairLogps, loss: named.ApoZero) -> torch.Tensor:
    """1 - s(r_w) + s(r_l). APO, D'Oosterlinck et al. 2024 (2408.06266), equation 7."""
    return torch.sigmoid(-loss.beta * seen.chosen_logratios) + torch.sigmoid(loss.beta * seen.rejected_logratios)


def apo_down(seen: PairLogps, loss: named.ApoDown) -> torch.Tensor:
    """s(r_w) + 1 - s(r_w - r_l): both go down, l further. APO, equation 8."""
    return torch.sigmoid(loss.beta * seen.chosen_logratios) + torch.sigmoid(-loss.beta * seen.logits)


def r_dpo(seen: PairLogps, loss: named.RDpo) -> torch.Tensor:
    """-log s(r_w - r_l + a (|w| - |l|)): what length explains of a preference is not learnt.

    R-DPO, Park et al. 2024 (2403.19159).
    """
    return -logsigmoid(loss.beta * seen.logits + loss.length_penalty * (seen.chosen_length - seen.rejected_length))


def odpo(seen: PairLogps, loss: named.Odpo) -> torch.Tensor:
    """-log s(r_w - r_l - c f(margin)), for graded preferences. ODPO, Amini et al. 2024 (2402.10571).

    f is the logarithm, as in their code, or the identity. Pairs that it has no logarithm for are not trained on.
    """
    margin = seen.margin
    if loss.margin_scale_of == "log":
        margin = margin.clamp(min=torch.finfo(margin.dtype).tiny).log()
    return -logsigmoid(loss.beta * seen.logits - loss.margin_scale * margin)


def dpop(seen: PairLogps, loss: named.Dpop) -> torch.Tensor:
    """-log s(beta (log-ratio of w - of l - a max(0, log reference(w) - log policy(w)))): w may not lose likelihood.

    DPO-Positive, Pal et al. 2024 (Smaug, 2402.13228).
    """
    lost = relu(-seen.chosen_logratios)
    return -logsigmoid(loss.beta * (seen.logits - loss.penalty * lost))


def rpo(seen: PairLogps, loss: named.Rpo) -> torch.Tensor:
    """-log s(r_w - r_l) - a log policy(w) / |w|. Iterative RPO, Pang et al. 2024 (2404.19733), equation 1."""
    return -logsigmoid(loss.beta * seen.logits) - loss.nll * seen.chosen_mean


def beta_dpo(seen: PairLogps, loss: named.BetaDpo) -> torch.Tensor:
    """-log s(b d), d = log-ratio of w - of l, with b = beta (1 + a (M - M_0)), M the mean of d over the step.

    M_0 is its moving mean over the steps, this one included. b stays over 0.001. beta-DPO, Wu et al. 2024 (2407.08639):
    as in their code, the gap d is without beta, which the paper has in it; without their filter, which drops pairs at
    random.
    """
    logits = seen.logits
    gap = logits.mean().detach()
    adapted = (loss.beta * (1 + loss.adaptation * (gap - seen.memory))).clamp(min=1e-3)
    return -logsigmoid(adapted * logits)


def beta_dpo_memory(seen: PairLogps, loss: named.BetaDpo, memory: dict[str, float]) -> dict[str, float]:
    """M_0 with the gaps of this step in it."""
    gap = seen.logits.mean().item()
    return {"value": loss.momentum * memory.get("value", 0.0) + (1 - loss.momentum) * gap}


def aot(seen: PairLogps, loss: named.Aot) -> torch.Tensor:
    """DPO's loss of the sorted log-ratios of policy and reference: the one distribution shall dominate the other.

    AOT, Melnyk et al. 2024 (2406.05882). Sorted over all pairs of the step; a pair's loss is that at the rank of its
    policy's log-ratio.
    """
    policy, ranks = _sorted(seen.chosen - seen.rejected)
    reference, _ = _sorted(seen.ref_chosen - seen.ref_rejected)
    return smoothed(loss.beta * (policy - reference), loss.label_smoothing)[ranks]


def aot_unpaired(seen: PairLogps, loss: named.AotUnpaired) -> torch.Tensor:
    """The same of the sorted rewards of all chosen and of all rejected: who stands with whom does not matter.

    A pair's loss is half that at the rank of its chosen and half that at the rank of its rejected.
    """
    (chosen, ranks), (rejected, other_ranks) = _sorted(seen.chosen_logratios), _sorted(seen.rejected_logratios)
    losses = smoothed(loss.beta * (chosen - rejected), loss.label_smoothing)
    return 0.5 * losses[ranks] + 0.5 * losses[other_ranks]


def _sorted(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(values in order [B], the rank of each [B])."""
    ordered, order = values.sort()
    return ordered, order.argsort()
