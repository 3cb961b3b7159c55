"""Losses of pairs that need no reference: one loss a pair, [B]. p is the policy's probability, w chosen, l rejected."""

import math

import torch
from torch.nn.functional import logsigmoid, relu

from stages.train.objective.losses.logps import PairLogps
from stages.train.objective.losses.paired import smoothed
from stages.train.objective.named import reference_free as named


def sft(seen: PairLogps, loss: named.Sft | None = None) -> torch.Tensor:
    """-log p(w), scaled so that the mean over the step is the mean over its chosen tokens, as TRL takes it.

    Or as others do: the mean over each completion's tokens, or no mean.
    """
    over = "step" if loss is None else loss.mean_over
    if over == "none":
        return -seen.chosen
    return -seen.chosen_mean if over == "completion" else -seen.chosen / seen.mean_length


def unlikelihood(seen: PairLogps, loss: named.Unlikelihood) -> torch.Tensor:
    """-log p(w) + alpha log p(l), scaled as SFT's: DPO's baseline, Rafailov et al. 2023 (2305.18290), section 6.

    After Welleck et al. 2019 (1908.04319), of whole completions. It has no lower bound: short trainings, small alpha.
    """
    return sft(seen) + loss.alpha * seen.rejected / seen.mean_length


def orpo(seen: PairLogps, loss: named.Orpo) -> torch.Tensor:
    """-log p(w) - beta log s(log odds(w) - log odds(l)), odds(y) = p / (1 - p), p the geometric mean over tokens.

    ORPO, Hong et al. 2024 (2403.07691), equations 6 and 7. The first term is over the completion's tokens; TRL takes
    the prompt's as well.
    """
    log_odds = (seen.chosen_mean - seen.rejected_mean) - (_log1mexp(seen.chosen_mean) - _log1mexp(seen.rejected_mean))
    return sft(seen) - loss.beta * logsigmoid(log_odds)


def cpo(seen: PairLogps, loss: named.Cpo) -> torch.Tensor:
    """-log s(beta (log p(w) - log p(l))) - a log p(w). CPO, Xu et al. 2024 (2401.08417), equation 3."""
    return smoothed(loss.beta * (seen.chosen - seen.rejected), loss.label_smoothing) + loss.nll * sft(seen)


def cpo_hinge(seen: PairLogps, loss: named.CpoHinge) -> torch.Tensor:
    """max(0, 1 - beta (log p(w) - log p(l))) - a log p(w): CPO with SLiC's hinge."""
    return relu(1 - loss.beta * (seen.chosen - seen.rejected)) + loss.nll * sft(seen)


def cpo_ipo(seen: PairLogps, loss: named.CpoIpo) -> torch.Tensor:
    """(log p(w) / |w| - log p(l) / |l| - 1 / (2 beta))^2 - a log p(w): CPO with IPO's square."""
    return (seen.chosen_mean - seen.rejected_mean - 1 / (2 * loss.beta)) ** 2 + loss.nll * sft(seen)


def simpo(seen: PairLogps, loss: named.SimPo) -> torch.Tensor:
    """-log s(beta (log p(w) / |w| - log p(l) / |l|) - gamma). SimPO, Meng et al. 2024 (2405.14734), equation 6."""
    return smoothed(loss.beta * (seen.chosen_mean - seen.rejected_mean) - loss.gamma, loss.label_smoothing)


def cpo_simpo(seen: PairLogps, loss: named.CpoSimPo) -> torch.Tensor:
    """SimPO's loss - a log p(w). CPO-SimPO, github.com/fe1ixxu/CPO_SIMPO."""
    return simpo(seen, loss) + loss.nll * sft(seen)


def alphapo(seen: PairLogps, loss: named.AlphaPo) -> torch.Tensor:
    """SimPO's loss with the reward (1 - q^-alpha) / alpha, q = p^(1 / |y|). Gupta et al. 2025 (2501.03884)."""

    def shaped(mean: torch.Tensor) -> torch.Tensor:
        if loss.alpha == 0:
            return mean
        return -torch.expm1((-loss.alpha * mean).clamp(max=40.0)) / loss.alpha

    logits = loss.beta * (shaped(seen.chosen_mean) - shaped(seen.rejected_mean)) - loss.gamma
    return smoothed(logits, loss.label_smoothing)


def _log1mexp(logp: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(logp)) for logp <= 0; at 0 that of the nearest number below."""
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    return torch.where(logp > -math.log(2), torch.log(-torch.expm1(logp)), torch.log1p(-torch.exp(logp)))
