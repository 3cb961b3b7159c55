"""What all stage configs share: they are frozen, know all their keys, and are plain data."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """A section of a recipe or cluster file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def unread(self) -> frozenset[str]:
        """Inputs of the stage that it makes no use of with this config."""
        return frozenset()
