"""What is measured, beside what it must hold to."""

from typing import NamedTuple


class Row(NamedTuple):
    name: str
    value: float
    bound: float | None = None  # the value may be at most this; None: it is only told
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.bound is None or self.value <= self.bound  # what is not a number does not

    def __str__(self) -> str:
        bound = "-" if self.bound is None else f"{self.bound:.3g}"
        state = "told" if self.bound is None else "holds" if self.holds else "DOES NOT HOLD"
        return f"{self.name:<78} {self.value:>10.4g} {bound:>9} {self.unit:<6} {state}"


HEADER = f"{'what':<78} {'value':>10} {'at most':>9} {'':<6} holds"
