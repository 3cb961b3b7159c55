"""metrics.jsonl, the truth about a run: one line a step, and what the held-out pairs say where they were asked."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

Metrics = dict[str, Any]


class Position(NamedTuple):
    file: int  # its inode: a file that was rewound is another one
    offset: int  # bytes


START = Position(0, 0)


class MetricsLog:
    """Written by rank 0, followed by whoever wants to."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, metrics: Metrics) -> None:
        with self.path.open("a") as lines:
            lines.write(json.dumps(metrics) + "\n")

    def read(self) -> list[Metrics]:
        return self.since(START)[0]

    def since(self, position: Position) -> tuple[list[Metrics], Position]:
        """What was written after `position`, in whole lines, and the position now; all of it if the file is another."""
        try:
            with self.path.open("rb") as file:
                number = os.fstat(file.fileno()).st_ino
                start = position.offset if position.file == number else 0
                file.seek(start)
                text = file.read()
        except FileNotFoundError:
            return [], START
        whole = text[: text.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.splitlines()], Position(number, start + len(whole))

    def rewind(self, step: int) -> None:
        """Forget what came after `step`: it is done again."""
        kept = [line for line in self.read() if line["step"] <= step]
        unfinished = self.path.with_name(f".{self.path.name}")
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))
        unfinished.rename(self.path)
