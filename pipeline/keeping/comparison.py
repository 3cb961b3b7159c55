"""Two recipes or artifacts beside each other."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.keeping.difference import Difference
from pipeline.view.tables import figure


def print_differences(found: Sequence[Difference], names: tuple[str, str], as_json: bool) -> None:
    if as_json:
        print(json.dumps([{"stage": each.stage, "states": each.states} | each.groups for each in found], indent=1))
        return
    same = [each.stage for each in found if each.is_none]
    for each in found:
        if each.is_none:
            continue
        table = Table("", *map(escape, names), "change", title=each.stage, title_justify="left")
        if each.states[0] != each.states[1]:
            table.add_row("state", *each.states)
        for group, changed in each.groups.items():
            table.add_section()
            for key, (one, other) in changed.items():
                shown = f"{each.stage}.{key}" if group == "config" else key
                table.add_row(escape(shown), *(escape(_told(value)) for value in (one, other)), _change(one, other))
        Console().print(table)
    if same:
        Console().print(f"the same in both: {', '.join(same)}", highlight=False)


def _told(value: Any) -> str:
    return "" if value is None else figure(value)


def _change(one: Any, other: Any) -> str:
    numbers = [each for each in (one, other) if isinstance(each, int | float) and not isinstance(each, bool)]
    return f"{numbers[1] - numbers[0]:+.3g}" if len(numbers) == 2 else ""
