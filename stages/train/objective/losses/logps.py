"""What a loss may see: a few numbers a pair, or a labelled completion. All are [B] float32."""

from typing import NamedTuple

import torch


class PairLogps(NamedTuple):
    """B pairs. Log-probs are sums over a completion, in nats; a loss without a reference finds zeros there.

    Of a completion, only its trained tokens are counted and summed, here and in every loss. A tail is what a completion
    has past the length of the other one.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tail: torch.Tensor
    rejected_tail: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor
    ref_chosen_tail: torch.Tensor
    ref_rejected_tail: torch.Tensor
    chosen_length: torch.Tensor  # tokens
    rejected_length: torch.Tensor
    mean_length: torch.Tensor  # of chosen, over all pairs of the step
    margin: torch.Tensor  # what the triple says of how much better chosen is; 0 where it says nothing
    alignment: torch.Tensor  # log of the pair's WPO weight, without gradient
    weight: torch.Tensor  # of the pair, as its triple says: StepLoss multiplies its loss with it; losses ignore it
    memory: torch.Tensor  # what the loss keeps of earlier steps

    @property
    def chosen_logratios(self) -> torch.Tensor:
        return self.chosen - self.ref_chosen

    @property
    def rejected_logratios(self) -> torch.Tensor:
        return self.rejected - self.ref_rejected

    @property
    def logits(self) -> torch.Tensor:
        """pi_logratios - ref_logratios."""
        return (self.chosen - self.rejected) - (self.ref_chosen - self.ref_rejected)

    @property
    def chosen_mean(self) -> torch.Tensor:
        return self.chosen / self.chosen_length

    @property
    def rejected_mean(self) -> torch.Tensor:
        return self.rejected / self.rejected_length

    def desensitised(self, alpha: float) -> "PairLogps":
        """Tails count `alpha`: LD-DPO, Liu et al. 2024 (2409.06411)."""
        less = 1 - alpha
        return self._replace(
            chosen=self.chosen - less * self.chosen_tail,
            rejected=self.rejected - less * self.rejected_tail,
            ref_chosen=self.ref_chosen - less * self.ref_chosen_tail,
            ref_rejected=self.ref_rejected - less * self.ref_rejected_tail,
        )


class LabelledLogps(NamedTuple):
    """B labelled completions, each with another prompt's completion after its own prompt (mismatched)."""

    completion: torch.Tensor
    mismatched: torch.Tensor
    ref_completion: torch.Tensor
    ref_mismatched: torch.Tensor
    label: torch.Tensor  # 1: desirable, 0: undesirable
    weight: torch.Tensor  # as in PairLogps
    memory: torch.Tensor

    @property
    def logratios(self) -> torch.Tensor:
        return self.completion - self.ref_completion

    @property
    def mismatched_logratios(self) -> torch.Tensor:
        return self.mismatched - self.ref_mismatched


Logps = PairLogps | LabelledLogps
