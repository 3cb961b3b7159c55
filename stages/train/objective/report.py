"""What is said of every loss in the same terms: rewards, margins, accuracies, log-probs, and how far the policy is."""

from typing import NamedTuple

import numpy as np
import torch

from stages.train.objective.losses import LabelledLogps, Logps
from stages.train.objective.named.loss import Loss

MOST_SOURCES = 32  # more of them, as the files of a folder may be, are not told apart


class Column(NamedTuple):
    """Values [k] of k of the rows that were seen."""

    rows: torch.Tensor  # [k] int64
    values: torch.Tensor


def report(seen: Logps, losses: torch.Tensor, loss: Loss) -> dict[str, float]:
    """Means over all that was seen. A reward is beta * log(policy / reference), and beta that of a sum's first loss.

    Without a reference it is beta * log(policy), a token's mean where the loss is of means, as TRL reports it. Of
    labelled completions the desirable are called chosen and the others rejected, and a reward is accurate whose sign
    is its label's; a kind that does not occur is left out. `implicit_kl` is the mean of log(policy / reference) over
    completions, in nats: the KL divergence, if the policy had written them.
    """
    means = {name: values.double().mean().item() for name, (_, values) in columns(seen, losses, loss).items()}
    if {"rewards/chosen", "rewards/rejected"} <= means.keys():
        means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
    return means


def columns(seen: Logps, losses: torch.Tensor, loss: Loss) -> dict[str, Column]:
    """What `report` gives the means of, but for margins."""
    every = torch.arange(len(losses), device=losses.device)
    if isinstance(seen, LabelledLogps):
        desirable, rewards = seen.label > 0, loss.beta * seen.logratios
        kinds = {"chosen": every[desirable], "rejected": every[~desirable]}
        found = {f"rewards/{kind}": Column(rows, rewards[rows]) for kind, rows in kinds.items() if len(rows)}
        found |= {f"logps/{kind}": Column(rows, seen.completion[rows]) for kind, rows in kinds.items() if len(rows)}
        accurate, moved = (rewards > 0) == desirable, Column(every, seen.logratios)
    else:
        sides = seen.chosen_logratios, seen.rejected_logratios
        if loss.of_means:
            sides = seen.chosen_mean, seen.rejected_mean
        found = {
            f"rewards/{side}": Column(every, loss.beta * each)
            for side, each in zip(("chosen", "rejected"), sides, strict=True)
        }
        found |= {"logps/chosen": Column(every, seen.chosen), "logps/rejected": Column(every, seen.rejected)}
        found["logps/chosen_per_token"] = Column(every, seen.chosen_mean)
        found["logps/rejected_per_token"] = Column(every, seen.rejected_mean)
        accurate = sides[0] > sides[1]
        moved = Column(torch.cat([every, every]), torch.cat([seen.chosen_logratios, seen.rejected_logratios]))
    found |= {"loss": Column(every, losses), "rewards/accuracies": Column(every, accurate.float())}
    if loss.reference:
        found["implicit_kl"] = moved
    return found


def report_by_source(seen: Logps, losses: torch.Tensor, loss: Loss, sources: np.ndarray) -> dict[str, float]:
    """The same means of the rows from each of `sources` ([rows] of str), as <source>/<name>."""
    found: dict[str, float] = {}
    for source in np.unique(sources.astype(str)).tolist():
        own = torch.from_numpy(np.flatnonzero(sources == source)).to(losses.device)
        means = report(type(seen)(*(each[own] for each in seen)), losses[own], loss)
        found |= {f"{source}/{name}": value for name, value in means.items()}
    return found
