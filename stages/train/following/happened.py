"""What has happened to a run beside its steps: it was begun again, or stood still. Steps do not show it afterwards."""

import json
from pathlib import Path
from typing import Literal, TypedDict


class Event(TypedDict):
    step: int  # the last one that was finished
    what: Literal["begun again", "stood still"]
    more: str


class Happened:
    """Scratch of a run in `out`, which its facts take over: a line an event, by whoever sees it."""

    def __init__(self, out: Path):
        self._path = out / ".happened.jsonl"

    def note(self, event: Event) -> None:
        with self._path.open("a") as lines:
            lines.write(json.dumps(event) + "\n")

    def read(self) -> list[Event]:
        """Whole lines; another process may be at one."""
        text = self._path.read_text() if self._path.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]
