"""What people see: one progress bar, tables, and none of the noise, which goes to a log file."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from pipeline.view.following.lines import Lines, is_for_lines, lines
from pipeline.view.following.sparkline import sparkline
from pipeline.view.following.trackers import Tracker

# Which metrics stand beside the bar, under which short name.
_SHOWN = {
    "loss": "loss", "rewards/margins": "margin", "pairs_per_second": "pairs/s", "pairs/s": "pairs/s",
    "tokens/s": "tokens/s", "actors": "actors", "died": "died", "unscored": "unscored",
}  # fmt: skip
_RARE = ("died", "unscored")  # shown when there is something to show
_CURVES = {"loss": "loss", "rewards/margins": "margin"}  # drawn under the bar
_CURVE_WIDTH = 48
_ENDED = 4  # bars that stay among those at work


@contextmanager
def quiet(log: Path, verbose: bool) -> Iterator[Console]:
    """Send what this process and its children print to `log`; the console given still writes to the terminal."""
    if verbose:
        yield Console()
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("ab", 0) as file, os.fdopen(os.dup(saved[0]), "w", buffering=1) as terminal:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        try:
            yield Console(file=terminal)
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            for target, original in zip((1, 2), saved, strict=True):
                os.dup2(original, target)
                os.close(original)


class Bar:
    """stages.progress.Progress drawn with rich, and its figures handed on."""

    def __init__(self, progress: Progress, name: str, trackers: Sequence[Tracker]):
        self._progress, self._name, self._trackers = progress, name, trackers
        self.task = progress.add_task(name, total=None, figures="", curves=())
        self._curves: dict[str, list[tuple[int, float]]] = {}  # metric -> (step, value)

    def start(self, total: int, done: int, unit: str) -> None:
        self._progress.update(self.task, total=total, completed=done, description=f"{self._name} {unit}")

    def advance(self, done: int, **figures: Any) -> None:
        shown = _shown(figures)
        self._progress.update(self.task, completed=done)
        if shown:
            self._progress.update(self.task, figures=shown)
        self._draw(done, figures)
        for tracker in self._trackers:
            tracker.log(figures, step=done)

    def made(self, rows: float = 0, tokens: float = 0, seconds: float = 0, rejected: float = 0) -> None:
        """The rates of `advance` say as much to people."""

    def _draw(self, done: int, figures: dict[str, Any]) -> None:
        """Curves of what training minimises and gains; a step that is done again takes the place of its first time."""
        for key in _CURVES.keys() & figures.keys():
            curve = self._curves.setdefault(key, [])
            while curve and curve[-1][0] >= done:
                curve.pop()
            curve.append((done, float(figures[key])))
        drawn = [
            f"{label:>11} {sparkline(values, _CURVE_WIDTH)} {values[0]:.3g} -> {values[-1]:.3g}"
            for key, label in _CURVES.items()
            if len(values := [value for _, value in self._curves.get(key, ())]) > 1
        ]
        self._progress.update(self.task, curves=drawn)

    def notice(self, message: str) -> None:
        self._progress.console.print(f"[yellow]Warning:[/] {escape(message)}", soft_wrap=True, highlight=False)


def _shown(figures: dict[str, Any]) -> str:
    return " ".join(
        f"{label} {figures[key]:.3g}"
        for key, label in _SHOWN.items()
        if key in figures and (figures[key] or key not in _RARE)
    )


class _Bars(Progress):
    """Bars, and under them the curves of those that are not at their end, or of a bar that is alone."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        alone = len(self.tasks) == 1
        for task in self.tasks:
            shown = task.fields["curves"] and (alone or not task.finished)
            if shown and self.console.encoding.startswith("utf"):
                yield Text("\n".join(task.fields["curves"]), "dim", no_wrap=True, overflow="crop")

    def scroll(self, ended: TaskID) -> None:
        """Leave it as a line above: bars past the end of a screen are not shown, and they are the ones at work."""
        self.console.print(self.make_tasks_table([task for task in self.tasks if task.id == ended]))
        self.remove_task(ended)


@contextmanager
def bars(console: Console) -> Iterator[Callable[..., AbstractContextManager[Bar | Lines]]]:
    """Bars under each other, in a log lines, for work that goes on side by side: a function that gives one by name."""
    if is_for_lines(console):
        with lines(console, _shown) as draw:
            yield draw
        return
    # They fit into 80 columns.
    columns = (
        TextColumn("{task.description:11}"),
        BarColumn(8),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    )

    @contextmanager
    def bar(name: str, trackers: Sequence[Tracker] = ()) -> Iterator[Bar]:
        drawn = Bar(progress, name, trackers)
        try:
            yield drawn
        finally:
            for tracker in trackers:
                tracker.finish()
            ended.append(drawn.task)
            if len(ended) > _ENDED:
                progress.scroll(ended.popleft())

    ended: deque[TaskID] = deque()
    with _Bars(*columns, console=console) as progress:
        yield bar


@contextmanager
def bar(console: Console, name: str, trackers: Sequence[Tracker]) -> Iterator[Bar | Lines]:
    with bars(console) as draw, draw(name, trackers) as drawn:
        yield drawn
