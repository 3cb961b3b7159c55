"""What is said of every loss in the same terms: rewards, margins, accuracies, log-probs, and how far the policy is."""

import numpy as np
import torch

from stages.train.objective.losses import LabelledLogps, Logps
from stages.train.objective.named.loss import Loss

MOST_SOURCES = 32  # more of them, as the files of a folder may be, are not told apart


def report(seen: Logps, losses: torch.Tensor, loss: Loss) -> dict[str, float]:
    """Means over all that was seen. A reward is beta * log(policy / reference), and beta that of a sum's first loss.

    Without a reference it is beta * log(policy), a token's mean where the loss is of means, as TRL reports it. Of
    labelled completions the desirable are called chosen and the others rejected, and a reward is accurate whose sign
    is its label's; a kind that does not occur is left out. `implicit_kl` is the mean of log(policy / reference) over
    completions, in nats: the KL divergence, if the policy had written them.
    """
    if isinstance(seen, LabelledLogps):
        desirable, rewards = seen.label > 0, loss.beta * seen.logratios
        kinds = {"chosen": desirable, "rejected": ~desirable}
        columns = {f"rewards/{kind}": rewards[rows] for kind, rows in kinds.items() if rows.any()}
        columns |= {f"logps/{kind}": seen.completion[rows] for kind, rows in kinds.items() if rows.any()}
        accurate, moved = (rewards > 0) == desirable, seen.logratios
    else:
        sides = seen.chosen_logratios, seen.rejected_logratios
        if loss.of_means:
            sides = seen.chosen_mean, seen.rejected_mean
        columns = {
            f"rewards/{side}": loss.beta * each for side, each in zip(("chosen", "rejected"), sides, strict=True)
        }
        columns |= {"logps/chosen": seen.chosen, "logps/rejected": seen.rejected}
        accurate, moved = sides[0] > sides[1], torch.cat([seen.chosen_logratios, seen.rejected_logratios])
    columns |= {"loss": losses, "rewards/accuracies": accurate.float()}
    if loss.reference:
        columns["implicit_kl"] = moved
    means = {name: values.double().mean().item() for name, values in columns.items()}
    if {"rewards/chosen", "rewards/rejected"} <= means.keys():
        means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
    return means


def report_by_source(seen: Logps, losses: torch.Tensor, loss: Loss, sources: np.ndarray) -> dict[str, float]:
    """The same means of the rows from each of `sources` ([rows] of str), as <source>/<name>."""
    found: dict[str, float] = {}
    for source in np.unique(sources.astype(str)).tolist():
        own = torch.from_numpy(np.flatnonzero(sources == source)).to(losses.device)
        means = report(type(seen)(*(each[own] for each in seen)), losses[own], loss)
        found |= {f"{source}/{name}": value for name, value in means.items()}
    return found
