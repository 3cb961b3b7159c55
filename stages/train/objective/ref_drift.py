"""Is the policy at step 1 the model that was scored? The difference of their log-probs, token by token, says so."""

from dataclasses import dataclass, field

import numpy as np
import torch

from stages.errors import ContractError
from stages.train.pairs.batch import Batch

# Root mean square of a token's difference, nats, up to which a policy passes for the model that was scored.
TOLERANCES = {
    # Kernels of one precision differ by 1e-5 and less. One that rounds its factors to 11 bits (TF32, as Triton's
    # attention does) is off by an eighth of what bfloat16 is: 4e-3.
    "float32": 5e-3,
    # An engine and a trainer of a healthy 7B model differ by 0.023 to 0.032 (Fast-LLM, pull request 525), and rounding
    # grows with the root of the number of layers: 0.06 with 80. Other models differ by half a nat and more.
    "bfloat16": 0.2,
}
# 99.9 % of the tokens may differ by so many times the tolerance: what is wrong at one token of each completion, or in
# one pair of hundreds, hardly shows in a mean.
_HIGH = 10
# A router takes another expert where two are nearly alike. That moves a few tokens far, and the root mean square with
# them: it may be so many times the tolerance, which then bounds the mean; and the tail is its own affair.
_ROUTED = 3

_CAUSES = (
    "Likely causes: the policy is not the model that was scored (then set train.starts_at_reference: false); "
    "another dtype in score than in train; or an engine whose numerics differ (score.backend: torch has none of that). "
    "A difference that this precision explains is allowed by train.ref_tolerance"
)


@dataclass(frozen=True)
class RefDrift:
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # [tokens], nats, without sign
    where: str = "no token"  # of the largest

    @property
    def largest(self) -> float:
        return float(self.sizes.max(initial=0.0))

    @property
    def mean(self) -> float:
        return float(self.sizes.mean(dtype=np.float64)) if len(self.sizes) else 0.0

    @property
    def rms(self) -> float:
        return float(np.sqrt(np.square(self.sizes, dtype=np.float64).mean())) if len(self.sizes) else 0.0

    @property
    def high(self) -> float:
        """99.9 % of the differences are at most this."""
        return float(np.quantile(self.sizes, 0.999)) if len(self.sizes) else 0.0

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
        return cls(difference.cpu().numpy(), where)

    def __add__(self, other: "RefDrift") -> "RefDrift":
        worse = self if self.largest > other.largest else other
        return RefDrift(np.concatenate([self.sizes, other.sizes]), worse.where)

    @property
    def figures(self) -> dict[str, float]:
        name = "check/ref_drift"
        return {name: self.largest, f"{name}_mean": self.mean, f"{name}_rms": self.rms, f"{name}_p999": self.high}

    def check(self, tolerance: float, routed: bool = False) -> None:
        """`routed`: a router chooses experts in this model. Raises ContractError past the bounds above."""
        if routed:
            bounds = {"mean": (self.mean, 1), "root mean square": (self.rms, _ROUTED)}
        else:
            bounds = {"root mean square": (self.rms, 1), "size of the largest 0.1 %": (self.high, _HIGH)}
        for name, (found, times) in bounds.items():
            if not found <= times * tolerance:
                factor = f"{times} times " if times > 1 else ""
                raise ContractError(
                    f"at step 1 the policy's log-probs differ from the cached reference's: the {name} of the "
                    f"differences of {len(self.sizes)} tokens is {found:.4g} nats, more than {factor}"
                    f"train.ref_tolerance {tolerance:g}. Root mean square {self.rms:.4g}, mean {self.mean:.4g}, "
                    f"99.9 % up to {self.high:.4g}, largest {self.largest:.4g}: {self.where}. {_CAUSES}"
                )
