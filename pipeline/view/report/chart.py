"""A figure before it is drawn: lines and dots, and what it says to those who do not see it."""

import math
from dataclasses import dataclass
from typing import ClassVar

Point = tuple[float, float]
_TOLD = 6  # lines that a description has room for


@dataclass(frozen=True)
class Line:
    label: str
    points: tuple[Point, ...]
    colour: int  # of the palette, which begins again after its last
    dashed: bool = False
    marked: bool = False  # a few looks, each of which is seen
    steps: bool = False  # the outline of a histogram


@dataclass(frozen=True)
class Interval:
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Dot:
    label: str
    x: Interval
    y: Interval
    colour: int
    dashed: ClassVar[bool] = False  # as legends ask of lines too
    marked: ClassVar[bool] = True


@dataclass(frozen=True)
class Chart:
    kind: ClassVar[str] = "chart"
    name: str  # of its file, and of its place in the page
    title: str
    x: str
    y: str
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    events: tuple[Point, ...] = ()  # where something happened: x, and 0
    log: bool = False
    note: str = ""

    @property
    def legend(self) -> list[Line | Dot]:
        """One alone is said by the title."""
        shown: list[Line | Dot] = [*self.lines, *self.dots]
        return shown if len(shown) > 1 else []

    @property
    def described(self) -> str:
        """In words, for screen readers."""
        told = [_line(line) for line in self.lines] + [_dot(dot) for dot in self.dots]
        if more := told[_TOLD:]:
            told = [*told[:_TOLD], f"and {len(more)} more"]
        if self.events:
            told.append(f"events at {self.x} {', '.join(f'{x:g}' for x, _ in self.events[:_TOLD])}")
        return f"{self.title}, {self.y} against {self.x}. " + "; ".join(told)


def finite(points: list[Point]) -> tuple[Point, ...]:
    return tuple((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))


def _line(line: Line) -> str:
    if not line.points:
        return f"{line.label}: nothing"
    (x0, y0), (x1, y1) = line.points[0], line.points[-1]
    values = [y for _, y in line.points]
    told = f"{line.label}: {y0:.3g} at {x0:g} to {y1:.3g} at {x1:g}"
    return f"{told}, least {min(values):.3g}, greatest {max(values):.3g}"


def _dot(dot: Dot) -> str:
    return f"{dot.label}: {_interval(dot.x)} and {_interval(dot.y)}"


def _interval(told: Interval) -> str:
    if told.low is None or told.high is None:
        return f"{told.value:.3g}"
    return f"{told.value:.3g} ({told.low:.3g} to {told.high:.3g})"
