"""What a loss says of itself, and fields that many losses have."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from stages.config import Config

Beta = Annotated[float, Field(gt=0)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]  # the probability that a label is wrong
Weight = Annotated[float, Field(gt=0)]


class Objective(Config):
    family: ClassVar[Literal["paired", "labelled", "reference_free"]] = "paired"
    coupled: ClassVar[bool] = False  # the loss of a pair depends on the other pairs of its step
    remembers: ClassVar[bool] = False  # and on those of earlier steps, by a few numbers
    of_means: ClassVar[bool] = False  # rewards are of log-probs a token, not of sums
    of_step_tokens: ClassVar[bool] = False  # it has a mean over all tokens of the step

    weight: Weight = 1.0  # in a sum of losses

    @property
    def terms(self) -> list[Any]:
        return [self]

    @property
    def of_the_step(self) -> bool:
        """The loss of a pair is another one in another step."""
        return self.coupled or self.of_step_tokens

    @property
    def labelled(self) -> bool:
        """It trains on labelled completions; else on pairs."""
        return self.family == "labelled"

    def advice(self, desirable: int, undesirable: int) -> list[str]:  # noqa: ARG002
        """What its authors would say of a set with so many labelled completions of both kinds."""
        return []

    @property
    def positive_margin(self) -> bool:
        """It says something of pairs alone whose margin is above 0."""
        return False

    @property
    def reference(self) -> bool:
        """It needs the reference's log-probs."""
        return self.family != "reference_free"
