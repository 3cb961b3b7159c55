"""How a stage tells people where it stands. The pipeline draws it; a stage run by itself may be silent."""

from typing import Any, Protocol


class Progress(Protocol):
    def start(self, total: int, done: int, unit: str) -> None:
        """`done` of `total` units (parts, steps) were finished before this run."""

    def advance(self, done: int, **figures: Any) -> None:
        """`done` units are finished now. `figures` are the metrics of the moment, named as in metrics.jsonl."""

    def made(self, rows: float = 0, tokens: float = 0, seconds: float = 0, rejected: float = 0) -> None:
        """What a unit has added: rows gone through, tokens computed, seconds of work on them, rows set aside."""

    def notice(self, message: str) -> None:
        """Something that people should see at once."""


class Silent:
    def start(self, total: int, done: int, unit: str) -> None: ...

    def advance(self, done: int, **figures: Any) -> None: ...

    def made(self, rows: float = 0, tokens: float = 0, seconds: float = 0, rejected: float = 0) -> None: ...

    def notice(self, message: str) -> None: ...
