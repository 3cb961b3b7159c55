"""What was tried of one part, kept on disk: an engine that fails takes its process, and all it knew, with it."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DIED = "its process died without a word: killed, out of memory, or crashed"


@dataclass(frozen=True)
class Attempts:
    """Files in a hidden folder, one for each attempt that came to no good end, with its error where one was said.

    A part is tried whole `limit` times. Then its pairs are tried by halves, each half that fails is halved again, and
    a pair that fails alone `limit` times is poisonous.
    """

    folder: Path
    limit: int

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Around an attempt; one that ends well is forgotten."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / f"{name}.{uuid.uuid4().hex[:8]}"
        record.touch()
        try:
            yield
        except Exception as error:
            record.write_text(f"{type(error).__name__}: {error}")
            raise
        record.unlink(missing_ok=True)

    def failed(self, name: str) -> list[str]:
        """What was said of the attempts that failed."""
        return [path.read_text() or DIED for path in sorted(self.folder.glob(f"{name}.*"))]

    @property
    def clean(self) -> bool:
        """Whether nothing has failed."""
        return not any(self.folder.glob("*"))

    def is_good(self, rows: range) -> bool:
        return self._good(rows).exists()

    def mark_good(self, rows: range) -> None:
        self._good(rows).touch()

    def search(self, rows: range) -> Iterator[range]:
        """What is left to try by halves: no rows that were tried with success, no pair that is poisonous."""
        failures = len(self.failed(self.name(rows)))
        if self.is_good(rows):
            return
        if len(rows) == 1:
            if failures < self.limit:
                yield rows
        elif not failures:
            yield rows
        else:
            half = len(rows) // 2
            yield from self.search(rows[:half])
            yield from self.search(rows[half:])

    def poisonous(self, rows: range) -> dict[int, str]:
        """Row -> error of the pairs that failed too often."""
        found = ((row, self.failed(self.name(range(row, row + 1)))) for row in rows)
        return {row: _clearest(errors) for row, errors in found if len(errors) >= self.limit}

    def forget(self) -> None:
        for path in self.folder.glob("*"):
            path.unlink(missing_ok=True)

    @staticmethod
    def name(rows: range) -> str:
        return f"{rows.start}-{rows.stop}"

    def _good(self, rows: range) -> Path:
        return self.folder / f"good-{self.name(rows)}"


def _clearest(errors: list[str]) -> str:
    return next((error for error in sorted(errors) if error != DIED), DIED)
