"""What a bill looks like on the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.bill.bill import Bill
from pipeline.bill.item import Item, Reference
from pipeline.view.following.lines import duration

_UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def print_bill(bill: Bill, console: Console) -> None:
    """Nothing where all is made."""
    asked = [each for each in bill.items if each.flops is not None or each.bytes is not None]
    if not asked:
        return
    kinds = {item.device for item in asked}
    hours = f"{kinds.pop() if len(kinds) == 1 else 'device'} hours"
    columns = ("to do", "rows", "tokens", "FLOP", "time", hours, "writes", "memory")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for item in asked:
        table.add_row(
            item.stage,
            "" if item.rows is None else f"{_about(item)}{item.rows:,} {item.unit}",
            "" if item.tokens is None else f"{_about(item)}{item.tokens:,}" if item.exact else _si(item.tokens),
            _si(item.flops),
            duration(item.seconds),
            "" if item.hours is None else f"{item.hours:.2g}",
            _bytes(item.bytes),
            _bytes(item.memory),
        )
    console.print(table)
    for what, said in (("Amounts", "how"), ("Times", "basis")):
        by_text: dict[str, list[str]] = {}
        for item in asked:
            by_text.setdefault(getattr(item, said), []).append(item.stage)
        for text, stages in by_text.items():
            if text:
                console.print(f"{what} of {', '.join(stages)}: {escape(text)}.", soft_wrap=True, highlight=False)
    if bill.reference is not None:
        console.print(_without_cache(bill.reference), soft_wrap=True, highlight=False)
    for warning in bill.warnings:
        console.print(f"[yellow]Warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)


def _without_cache(added: Reference) -> str:
    told = f"Without the cache a reference in the trainer would add {_si(added.flops)}FLOP to each training "
    told += f"({added.share:.0%}{'' if added.seconds is None else f', {duration(added.seconds)}'}) and "
    told += f"{_bytes(added.memory)} to each worker; the cache "
    return told + (f"takes {_si(added.cached)}FLOP once" if added.cached else "is there already")


def _about(item: Item) -> str:
    return "" if item.exact or "rows counted" in item.how else "~"


def _si(number: float | None) -> str:
    if number is None:
        return ""
    size, unit = next(((size, unit) for size, unit in _UNITS if number >= size), (1, ""))
    return f"{number / size:.3g}{unit}"


def _bytes(size: float | None) -> str:
    return "" if size is None else f"{_si(size)}B"
