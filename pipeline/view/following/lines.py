"""Progress where nobody looks at a terminal: in a job's log, a line every so often, without control codes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

from pipeline.view.following.trackers import Tracker

EVERY = 30.0  # seconds between lines of one piece of work


class Lines:
    """stages.progress.Progress as lines of text. `shown` writes figures as a bar does."""

    def __init__(
        self, console: Console, name: str, trackers: Sequence[Tracker], shown: Callable[[dict[str, Any]], str],
        every: float = EVERY, clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self._console, self._name, self._trackers, self._shown = console, name, trackers, shown
        self._every, self._clock = every, clock
        self._total, self._begun, self._unit = 0, 0, ""
        self._since = self._said = clock()
        self._first: tuple[float, int] | None = None  # when which unit was the first to end
        self._figures = ""

    def start(self, total: int, done: int, unit: str) -> None:
        self._total, self._begun, self._unit = total, done, unit
        self._since, self._first = self._clock(), None
        if done < total:
            self._say(done)

    def advance(self, done: int, **figures: Any) -> None:
        self._figures = self._shown(figures) or self._figures
        self._first = self._first or (self._clock(), done)
        if done >= self._total or self._clock() - self._said >= self._every:
            self._say(done)
        for tracker in self._trackers:
            tracker.log(figures, step=done)

    def made(self, rows: float = 0, tokens: float = 0, seconds: float = 0, rejected: float = 0) -> None:
        """The rates of `advance` say as much to people."""

    def notice(self, message: str) -> None:
        self._print(f"Warning: {message}")

    def _say(self, done: int) -> None:
        self._said = now = self._clock()
        pieces = [f"{self._name}: {done} of {self._total} {self._unit}"]
        if done > self._begun:
            pieces.append(f"in {duration(now - self._since)}")
            # What comes before the end of the first unit, models that load and the like, does not come again.
            if self._first and self._first[1] < done < self._total:
                since, begun = self._first
                left = (now - since) * (self._total - done) / (done - begun)
                pieces.append(f"about {duration(left)} left")
        self._print("; ".join(filter(None, (", ".join(pieces), self._figures))))

    def _print(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True, highlight=False)


def is_for_lines(console: Console) -> bool:
    """Whether bars would not be seen, or would fill a log with control codes."""
    return not console.is_terminal or console.is_dumb_terminal


@contextmanager
def lines(
    console: Console, shown: Callable[[dict[str, Any]], str]
) -> Iterator[Callable[..., AbstractContextManager[Lines]]]:
    """As `terminal.bars`."""

    @contextmanager
    def line(name: str, trackers: Sequence[Tracker] = ()) -> Iterator[Lines]:
        try:
            yield Lines(console, name, trackers, shown)
        finally:
            for tracker in trackers:
                tracker.finish()

    yield line


def duration(seconds: float | None) -> str:
    """To two digits: 40 s, 12 min, 3.5 h."""
    if seconds is None:
        return "?"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
