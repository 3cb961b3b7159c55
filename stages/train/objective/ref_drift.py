"""Is the policy at step 1 the model that was scored? The difference of their log-probs, token by token, says so."""

from dataclasses import dataclass

import torch

from stages.errors import ContractError
from stages.train.pairs.batch import Batch

_CAUSES = (
    "Likely causes: the policy is not the model that was scored (then set train.starts_at_reference: false); "
    "another dtype in score than in train; or an engine whose numerics differ (score.backend: torch has none of that). "
    "A difference that this precision explains is allowed by train.ref_tolerance"
)


@dataclass(frozen=True)
class RefDrift:
    largest: float = 0.0  # nats
    total: float = 0.0
    tokens: int = 0
    where: str = "no token"  # of the largest

    @property
    def mean(self) -> float:
        return self.total / max(self.tokens, 1)

    @classmethod
    def of(cls, batch: Batch, token_logps: torch.Tensor) -> "RefDrift":
        difference = (token_logps.detach() - batch.ref_token_logps).abs()
        worst = int(difference.argmax())
        row = int(batch.layout.owners[worst])
        position = worst - int((batch.layout.owners < row).sum())
        side = batch.sides[row % 2]
        where = (
            f"pair {batch.pair_ids[row // 2]}, {side} token {position} of those trained: policy "
            f"{token_logps[worst].item():.5f}, reference {batch.ref_token_logps[worst].item():.5f}"
        )
        return cls(difference[worst].item(), difference.sum().item(), len(difference), where)

    def __add__(self, other: "RefDrift") -> "RefDrift":
        worse = max(self, other, key=lambda drift: drift.largest)
        return RefDrift(worse.largest, self.total + other.total, self.tokens + other.tokens, worse.where)

    def check(self, tolerance: float) -> None:
        if not self.largest <= tolerance:
            raise ContractError(
                f"at step 1 the policy's log-probs differ from the cached reference's by up to {self.largest:.4g} nats "
                f"(mean {self.mean:.4g}), and train.ref_tolerance is {tolerance:g}. Worst: {self.where}. {_CAUSES}"
            )
