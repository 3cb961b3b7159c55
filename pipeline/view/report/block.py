"""What a page is made of: sections of tables, charts, notes and samples. Plain data; page.html.j2 gives it its form."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar

from pipeline.view.effect import is_estimate
from pipeline.view.report.chart import Chart
from pipeline.view.tables import figure


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | int | None = None  # all digits of what the text rounds, and what its column is sorted by
    links: tuple[tuple[str, str], ...] = ()  # (text, where in the page), instead of the text
    anchor: str = ""  # what others link to


@dataclass(frozen=True)
class Table:
    kind: ClassVar[str] = "table"
    name: str  # unique in the page
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    folded: bool = False  # shown when it is asked for


@dataclass(frozen=True)
class Note:
    kind: ClassVar[str] = "note"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Text:
    """What one of two models wrote."""

    who: str
    text: str
    told: str


@dataclass(frozen=True)
class Sample:
    prompt: str
    texts: tuple[Text, ...]


@dataclass(frozen=True)
class Samples:
    kind: ClassVar[str] = "samples"
    caption: str
    samples: tuple[Sample, ...]


Block = Table | Chart | Note | Samples


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not self.blocks

    @property
    def grouped(self) -> list[tuple[str, list[Block]]]:
        """Blocks of a kind that follow each other: charts stand side by side where there is room."""
        return [(kind, list(blocks)) for kind, blocks in groupby(self.blocks, key=lambda block: block.kind)]


def cell(value: Any) -> Cell:
    """A figure as people read it, with all its digits beside it."""
    if isinstance(value, Cell):
        return value
    if value is None:
        return Cell("")
    if is_estimate(value):
        return Cell(figure(value), value["value"])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(figure(value))
    if isinstance(value, int):
        return Cell(f"{value:,}", value)
    return Cell(f"{value:.4g}", value)


def table(name: str, caption: str, columns: Sequence[str], rows: Iterable[Iterable[Any]], **more: Any) -> list[Block]:
    """Nothing where there is no row."""
    made = tuple(tuple(cell(value) for value in row) for row in rows)
    return [Table(name, caption, tuple(columns), made, **more)] if made else []


def facts_table(name: str, caption: str, facts: dict[str, Any], **more: Any) -> list[Block]:
    """A row a figure."""
    return table(name, caption, ("figure", "value"), facts.items(), **more)
