"""What a run of the train stage is given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.train.config import TrainConfig, TrainResources


@dataclass(frozen=True)
class Job:
    config: TrainConfig
    resources: TrainResources
    pairs: PreferencePairs
    logprobs: ReferenceLogprobs | None  # None: the loss needs no reference
    out: Path
    longest: int  # tokens of the longest sequence

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have been made from, to be taken up."""
        inputs = {"pairs": self.pairs.manifest.fingerprint}
        if self.logprobs is not None:
            inputs["logprobs"] = self.logprobs.manifest.fingerprint
        return {"config": self.config.model_dump(mode="json"), "inputs": inputs}
