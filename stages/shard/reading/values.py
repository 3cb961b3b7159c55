"""Values of tables as JSON says them."""

import json
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any


def without_nulls(value: Any) -> Any:
    """What a row said before Parquet or Arrow gave all rows the same fields: in lists and structs, such as messages and
    tools, a null stands for a field that is not there. Columns and the content of a message may be null: they stay.
    """
    if isinstance(value, dict):
        is_message = "role" in value
        return {
            name: without_nulls(inner)
            for name, inner in value.items()
            if inner is not None or (is_message and name == "content")
        }
    return [without_nulls(inner) for inner in value] if isinstance(value, list | tuple) else value


def as_text(row: dict[str, Any]) -> str:
    """JSON text of a row of a table."""
    return json.dumps({name: without_nulls(value) for name, value in row.items()}, ensure_ascii=False, default=plain)


def plain(value: Any) -> Any:
    """What JSON has no word for. Bytes are text where they are UTF-8; what they hold else is of no use here."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"bytes": len(value)}
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value)
