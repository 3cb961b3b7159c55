"""Hidden states -> log-probs of given target tokens, in chunks: no [tokens, vocabulary] tensor is ever whole."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

CHUNK = 1024  # rows of logits alive at a time; at a vocabulary of 128k in fp32 that is 0.5 GiB


@dataclass(frozen=True)
class LogitRule:
    """What a model does to its head's output before the softmax."""

    scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    def of(cls, config: PretrainedConfig) -> "LogitRule":
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies
        scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite divides
        return cls(scale, getattr(config, "final_logit_softcapping", None))  # Gemma 2

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float() * self.scale
        return logits if self.soft_cap is None else torch.tanh(logits / self.soft_cap) * self.soft_cap


def target_logps(
    hidden: torch.Tensor, lm_head: nn.Module, rule: LogitRule, targets: torch.Tensor, chunk: int = CHUNK
) -> torch.Tensor:
    """log softmax(rule(lm_head(hidden)))[targets].

    hidden [N, H] any float dtype, targets [N] int64 -> [N] float32, nats. The softmax runs in float32; the backward
    pass computes each chunk's logits again instead of keeping them.
    """

    def chunk_logps(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = rule(lm_head(hidden))
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)

    chunks = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([checkpoint(chunk_logps, h, t, use_reentrant=False) for h, t in chunks])
