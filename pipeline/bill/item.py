"""What a stage costs, as far as it is known."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Item:
    """Of one stage. What is not known is None; of what is made already nothing is asked but rows and tokens."""

    stage: str
    state: str
    rows: int | None = None  # of `unit`
    unit: str = ""
    tokens: int | None = None
    exact: bool = False  # rows and tokens, as a manifest has them
    how: str = ""  # they are known
    flops: float | None = None
    seconds: float | None = None
    basis: str = ""  # of the seconds
    error: float | None = None  # the largest factor by which earlier artifacts were missed, each by the others
    devices: int = 1
    device: str = "core"
    bytes: float | None = None
    memory: float | None = None  # of a worker or actor, bytes

    @property
    def hours(self) -> float | None:
        """Of all devices together."""
        return None if self.seconds is None else self.seconds * self.devices / 3600

    @property
    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"device_hours": self.hours}


@dataclass(frozen=True)
class Reference:
    """What a reference in the trainer would add to one training, and what the cache costs instead, once."""

    flops: float
    share: float  # of the training's own
    seconds: float | None
    memory: float  # bytes a worker
    cached: float  # operations of scoring; 0 where it has been done
