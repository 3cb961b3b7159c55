"""What a run of the evaluate stage is given, and where it keeps what it has done so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.evaluate.config import EvaluateConfig, EvaluateResources
from stages.evaluate.evaluation import Evaluation
from stages.names import part_name

PROMPTS_A_PART = 64


@dataclass(frozen=True)
class Job:
    """Hidden files under `out`, each whole: parts of the held-out pairs, and for parts of the prompts what each model
    wrote, and what each model says of both texts. A run that was killed goes on with those that are missing."""

    config: EvaluateConfig
    resources: EvaluateResources
    pairs: PreferencePairs | None
    logprobs: ReferenceLogprobs | None  # None: the loss has no reference
    out: Path
    known: Sequence[Evaluation] = ()  # of other policies beside the same reference, which was asked in the same way

    def model(self, who: str) -> str:
        """Of "policy" or "reference"."""
        name = getattr(self.config, who)
        assert name is not None
        return str(name)

    @property
    def prompts(self) -> Path:
        return self.out / ".prompts.parquet"

    def seen(self, part: str) -> Path:
        """What the loss sees of the held-out pairs of a part."""
        return self.out / ".seen" / part

    def written(self, who: str, number: int) -> Path:
        return self.out / f".written-{who}" / part_name(number)

    def scored(self, who: str, number: int) -> Path:
        """By the model `who`: what both have written to the prompts of a part."""
        return self.out / f".scored-{who}" / part_name(number)
