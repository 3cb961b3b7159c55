"""One line of what was found."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    about: str
    level: Literal["ok", "warning", "fault"]  # fault: something will not work
    told: str
    remedy: str = ""  # what to do; of all but ok
