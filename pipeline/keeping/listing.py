"""What a store holds, on the terminal: plain columns, which thousands of rows take no time for and other tools read."""

import json
import time
from collections.abc import Iterable, Sequence

from pipeline.graph import STAGES
from pipeline.keeping.inventory import Inventory, Kept

_COLUMNS = ("stage", "fingerprint", "state", "size", "age", "recipe", "made from", "needed by")


def print_kept(found: Inventory, now: float, as_json: bool) -> None:
    if as_json:
        print(json.dumps([plain(kept, found) for kept in found.values()], indent=1))
        return
    print_columns([_COLUMNS, *(_row(kept, found, now) for kept in found.values())])
    total = sum(kept.bytes for kept in found.values())
    print(f"{len(found)} artifacts, {told_bytes(total)}")


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows))


def plain(kept: Kept, found: Inventory) -> dict[str, object]:
    """For programs. `made_from`: argument -> name, which need not be there any more."""
    return {
        "stage": kept.stage,
        "name": kept.name,
        "state": kept.state,
        "recipe": kept.recipe,
        "bytes": kept.bytes,
        "changed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(kept.changed)),
        "made_from": {argument: _whole(name, found) for argument, name in kept.made_from.items()},
        "needed_by": ["/".join(key) for key in kept.needed_by],
        "used_by": kept.user,
    }


def _row(kept: Kept, found: Inventory, now: float) -> tuple[str, ...]:
    state = "running" if kept.user and kept.state == "partial" else "in use" if kept.user else kept.state
    age = told_age(now - kept.changed) if kept.changed else ""
    made_from = _few(_whole(name, found) for name in dict.fromkeys(kept.made_from.values()))
    needed_by = _few("/".join(key) for key in kept.needed_by)
    return kept.stage, kept.name, state, told_bytes(kept.bytes), age, kept.recipe or "", made_from, needed_by


def _few(names: Iterable[str]) -> str:
    given = list(names)
    return " ".join(given[:3]) + (f" and {len(given) - 3} more" if len(given) > 3 else "")


def _whole(name: str, found: Inventory) -> str:
    return next((str(found[stage, name]) for stage in STAGES if (stage, name) in found), f"{name} (removed)")


def told_bytes(count: int) -> str:
    """With three digits, in units of 1000: 1.23 GB."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def told_age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
