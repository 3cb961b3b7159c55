"""The losses: pure functions of log-probs, found by the name that a recipe gives them (named/)."""

import torch

from stages.train.objective.losses import labelled, paired, reference_free
from stages.train.objective.losses.logps import LabelledLogps, Logps, PairLogps
from stages.train.objective.named.loss import Loss, Single

_FAMILIES = {"paired": paired, "labelled": labelled, "reference_free": reference_free}
Memory = dict[str, float]  # what losses keep of earlier steps: "{loss}/{number}" -> value


def losses_of(seen: Logps, loss: Loss, memory: Memory) -> torch.Tensor:
    """The recipe's loss of each of B pairs or labelled completions, [B]; a sum of losses is added up."""
    return torch.stack([term.weight * _of_term(seen, term, memory) for term in loss.terms]).sum(0)


def _of_term(seen: Logps, term: Single, memory: Memory) -> torch.Tensor:
    seen = seen._replace(memory=torch.full_like(seen.memory, memory.get(f"{term.name}/value", 0.0)))
    if isinstance(seen, PairLogps) and (alpha := getattr(term, "ld_alpha", None)) is not None:
        seen = seen.desensitised(alpha)
    losses: torch.Tensor = getattr(_FAMILIES[term.family], term.name)(seen, term)
    if isinstance(seen, PairLogps) and getattr(term, "wpo", False):
        losses = losses * seen.alignment.exp()  # WPO, Zhou et al. 2024 (2406.11827), equation 2
    return losses


def remembered(seen: Logps, loss: Loss, memory: Memory) -> Memory:
    """What the losses keep once they have seen this step."""
    after: Memory = {}
    for term in loss.terms:
        if term.remembers:
            own = {key.partition("/")[2]: value for key, value in memory.items() if key.startswith(f"{term.name}/")}
            update = getattr(_FAMILIES[term.family], f"{term.name}_memory")
            after |= {f"{term.name}/{key}": value for key, value in update(seen, term, own).items()}
    return after


__all__ = ["LabelledLogps", "Logps", "Memory", "PairLogps", "losses_of", "remembered"]
