"""What all stage configs share: they are frozen, know all their keys, and are plain data."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Labels = dict[str, str]  # of the nodes that may have a stage's work, as `ray start --labels` gives them; none: all


class Config(BaseModel):
    """A section of a recipe or cluster file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def unread(self) -> frozenset[str]:
        """Inputs of the stage that it makes no use of with this config."""
        return frozenset()


class Elastic(Config):
    """As many as there is room for."""

    min: Count = 1
    max: Count

    @model_validator(mode="after")
    def _in_order(self) -> "Elastic":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


def fewest(count: int | Elastic) -> int:
    return count.min if isinstance(count, Elastic) else count


def most(count: int | Elastic) -> int:
    return count.max if isinstance(count, Elastic) else count
