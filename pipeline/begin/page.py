"""A YAML file whose lines say why they are so."""

import textwrap
from typing import Any

import yaml

_WIDTH = 110  # of a line with its reason; a longer reason stands above


class Page:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def note(self, text: str, indent: int = 0) -> None:
        start = " " * indent + "# "
        self._lines += textwrap.wrap(
            text, _WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False
        )

    def gap(self) -> None:
        self._lines.append("")

    def section(self, name: str) -> None:
        self._lines += ["", f"{name}:"]

    def field(self, key: str, value: Any, why: str = "", indent: int = 2) -> None:
        line = f"{' ' * indent}{key}: {written(value)}"
        if why and len(line) + len(why) + 4 > _WIDTH:
            self.note(why, indent)
            why = ""
        self._lines.append(f"{line}  # {why}" if why else line)

    @property
    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def written(value: Any) -> str:
    """On one line, as YAML reads it back."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True).split("\n")[
        0
    ]
