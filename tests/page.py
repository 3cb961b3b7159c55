"""A page of HTML as tests look at it."""

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Table:
    caption: str = ""
    columns: list[str] = field(default_factory=list)
    rows: list[list[tuple[str, str | None]]] = field(default_factory=list)  # (text, all digits)

    def column(self, name: str) -> list[str | None]:
        """All digits where there are any."""
        place = self.columns.index(name)
        return [row[place][1] or row[place][0] for row in self.rows]

    @property
    def figures(self) -> dict[str, str]:
        """Of a table of two columns."""
        return {row[0][0]: row[1][1] or row[1][0] for row in self.rows}


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tables: dict[str, Table] = {}
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._table, self._cell, self._where = Table(), None, ""
        self.feed(text)

    @property
    def ids(self) -> list[str]:
        return [value for name, value in self.attributes if name == "id"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.attributes += told.items()
        self._where = tag if tag in ("script", "style") else self._where
        if tag == "table":
            self._table = self.tables[told["id"]] = Table()
        elif tag == "tr":
            self._table.rows.append([])
        elif tag in ("td", "th", "caption"):
            self._cell, self._where = told.get("data-value"), tag
            self._said = ""

    def handle_data(self, data: str) -> None:
        if self._where not in ("script", "style"):
            self.text += data
        if self._where in ("td", "th", "caption"):
            self._said += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "caption":
            self._table.caption = self._said
        elif tag in ("td", "th"):
            self._table.rows[-1].append((self._said.strip(), self._cell))
        elif tag == "thead":
            self._table.columns = [text for text, _ in self._table.rows.pop()]
        if tag in ("script", "style", "td", "th", "caption"):
            self._where = ""
