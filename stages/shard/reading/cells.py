"""CSV and TSV: cells are text, but for numbers and truths in columns that hold no text by the recipe."""

import csv
import io
import re
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Any

from stages.errors import RecipeError
from stages.shard.reading.opening import opened, problem_of, sound, told

# As JSON writes them, and short enough to be one: "007" and a phone number of twenty digits are text.
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d{1,17})?([eE][+-]?\d{1,2})?")
_TRUTHS = {"true": True, "false": False}


def rows(path: str, delimiter: str, text_columns: Collection[str]) -> Iterator[dict[str, Any] | str]:
    """A row each, by the names in the first line; text where its cells are not as many as these."""
    csv.field_size_limit(2**31 - 1)
    with told(path), opened(path) as stream:
        file = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
        first = file.readline()
        lines = csv.reader(chain([first], file), delimiter=_delimiter(first, delimiter), strict=True)
        names = [sound(name) for name in next(lines, [])]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise RecipeError(f"{path} has two columns {twice!r} in its first line. Give each a name of its own")
        for cells in lines:
            if not cells:
                continue
            problem = f"{len(cells)} cells, and {len(names)} columns" if len(cells) != len(names) else None
            if broken := [cell for cell in cells if not _is_sound(cell)]:
                problem = problem or problem_of(sound(broken[0]))
            if problem:
                yield f"({problem}) {' | '.join(map(sound, cells))}"
            else:
                yield {name: _value(cell, name in text_columns) for name, cell in zip(names, cells, strict=True)}


def _delimiter(first: str, usual: str) -> str:
    """What stands between the names of the first line: where commas are decimal, spreadsheets write semicolons."""
    bare = re.sub(r'"[^"]*"', "", first)
    return usual if usual in bare else next((mark for mark in ",;\t" if mark in bare), usual)


def _is_sound(cell: str) -> bool:
    return cell.isascii() or cell.encode(errors="replace").decode() == cell


def _value(cell: str, is_text: bool) -> Any:
    if is_text:
        return cell
    if not cell:
        return None
    if _NUMBER.fullmatch(cell):
        return float(cell) if set(cell) & set(".eE") else int(cell)
    return _TRUTHS.get(cell.lower(), cell)
