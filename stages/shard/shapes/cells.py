"""The values of a row's columns, checked."""

import math
from typing import Any

from stages.shard.shapes.row import Malformed


def text_or_messages(row: dict[str, Any], name: str) -> Any:
    """A string, a list, or one message alone. Raises Malformed."""
    value = row.get(name)
    if value is None:
        raise Malformed(f"no value in column {name!r}")
    if not isinstance(value, str | list | dict):
        raise Malformed(f"column {name!r} is a {type(value).__name__}, neither text nor a list of messages")
    return value


def number(value: Any, name: str) -> float:
    """Also of text that spells one, as CSV files and UltraFeedback's ratings do. Raises Malformed."""
    found = number_or_none(value)
    if found is None:
        raise Malformed(f"{name} is {_short(value)}, not a finite number")
    return found


def number_or_none(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def margin_of(row: dict[str, Any], name: str) -> float:
    """Of a column, or of the difference "one - other" of two."""
    one, minus, other = name.partition(" - ")
    if minus and name not in row:
        return number(row.get(one), f"column {one!r}") - number(row.get(other), f"column {other!r}")
    return number(row.get(name), f"column {name!r}")


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 80 else told[:77] + ".."
