"""Lengths, truncation, length bias and sources of a part: sums and histograms, which add up exactly."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages import schema

SHOWN_SOURCES = 50  # the largest by name; the others as one


@dataclass
class Figures:
    """Of some parts. Lengths are tokens; differences are those of chosen minus rejected."""

    lengths: dict[str, Counter[int]] = field(default_factory=dict)  # of a side: length -> how many have it
    cut: Counter[str] = field(default_factory=Counter)
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    duplicates: int = 0
    longer_chosen: int = 0
    same_length: int = 0
    difference: int = 0
    with_margin: int = 0
    # Of pairs with a margin: sums of difference, its square, margin, its square, and their product.
    moments: list[float] = field(default_factory=lambda: [0.0] * 5)

    @classmethod
    def of(cls, pairs: pa.Table, rejects: pa.Table, max_length: int) -> "Figures":
        """Of one part: tokenized rows with `cut_prompt` and `cut_completions`, and what was set aside beside them."""
        made = cls()
        lengths = {
            name: pc.list_value_length(pairs[f"{name}_ids"]).to_numpy().astype(np.int64)
            for name in ("prompt", *schema.sides(pairs.column_names))
        }
        prompt, first, second = lengths.values()
        labelled = "label" in pairs.column_names
        made.cut["prompt"] = int(pc.sum(pairs["cut_prompt"]).as_py() or 0)
        num_cut = pairs["cut_completions"].to_numpy()
        if labelled:
            label = pairs["label"].to_numpy()
            by_side = {"prompt": prompt, "desirable": first[label], "undesirable": first[~label]}
            made.cut |= {"desirable": int(num_cut[label].sum()), "undesirable": int(num_cut[~label].sum())}
        else:
            by_side = lengths
            full = prompt + first == max_length  # of one that was cut it is chosen, if that reaches the end
            made.cut |= {
                "chosen": int(((num_cut == 2) | (num_cut == 1) & full).sum()),
                "rejected": int(((num_cut == 2) | (num_cut == 1) & ~full).sum()),
            }
            made._compare(first - second, pairs["margin"])
        for name, values in by_side.items():
            made.lengths[name] = _histogram(values)
        for name, split in zip(pairs["source"].to_pylist(), pairs["split"].to_pylist(), strict=True):
            made.sources.setdefault(name, Counter()).update(("pairs", "train" if split == "train" else "held_out"))
        for name in rejects["source"].to_pylist():
            made.sources.setdefault(name, Counter())["set_aside"] += 1
        made.duplicates = rejects["reason"].to_pylist().count("duplicate")
        return made

    def _compare(self, difference: np.ndarray, margin: pa.ChunkedArray) -> None:
        self.longer_chosen = int((difference > 0).sum())
        self.same_length = int((difference == 0).sum())
        self.difference = int(difference.sum())
        told = pc.is_valid(margin).to_numpy()
        d, m = difference[told].astype(float), pc.drop_null(margin).to_numpy()
        self.with_margin = len(d)
        self.moments = [float(each.sum()) for each in (d, d * d, m, m * m, d * m)]

    def plain(self) -> dict[str, Any]:
        """For JSON; `from_plain` is its inverse."""
        return vars(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Figures":
        lengths = {
            name: Counter({int(key): n for key, n in counts.items()}) for name, counts in plain["lengths"].items()
        }
        sources = {name: Counter(counts) for name, counts in plain["sources"].items()}
        return cls(**plain | {"lengths": lengths, "cut": Counter(plain["cut"]), "sources": sources})

    def add(self, other: "Figures") -> None:
        for name, lengths in other.lengths.items():
            self.lengths.setdefault(name, Counter()).update(lengths)
        for name, counts in other.sources.items():
            self.sources.setdefault(name, Counter()).update(counts)
        self.cut.update(other.cut)
        for name in ("duplicates", "longer_chosen", "same_length", "difference", "with_margin"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.moments = [a + b for a, b in zip(self.moments, other.moments, strict=True)]

    def facts(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "lengths": {name: _spread(counts) | {"cut": self.cut[name]} for name, counts in self.lengths.items()}
        }
        if "chosen" in self.lengths and (count := self.lengths["chosen"].total()):
            told["length_bias"] = {
                "longer_chosen": round(self.longer_chosen / count, 4),
                "same_length": round(self.same_length / count, 4),
                "mean_difference": round(self.difference / count, 2),
            }
            if (correlation := self._correlation()) is not None:
                told["length_bias"]["correlation_with_margin"] = correlation
        return told | {"sources": _largest(self.sources)}

    def _correlation(self) -> float | None:
        """Pearson's, of the difference in length with the margin; None where one of them is always the same."""
        n = self.with_margin
        d, dd, m, mm, dm = self.moments
        spread = (n * dd - d * d) * (n * mm - m * m)
        return round((n * dm - d * m) / math.sqrt(spread), 4) if spread > 1e-9 else None


def _histogram(values: np.ndarray) -> Counter[int]:
    different, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(different.tolist(), counts.tolist(), strict=True)))


def _spread(counts: Counter[int]) -> dict[str, int]:
    """Of a histogram; a quantile is the least length that so many do not exceed."""
    if not counts:
        return {}
    lengths, numbers = (np.array(each) for each in zip(*sorted(counts.items()), strict=True))
    upto = np.cumsum(numbers)
    at = {name: lengths[np.searchsorted(upto, share * upto[-1])] for name, share in (("median", 0.5), ("p95", 0.95))}
    return {name: int(n) for name, n in ({"min": lengths[0]} | at | {"max": lengths[-1]}).items()}


def _largest(sources: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    """All by name; of very many the largest, and the rest together."""
    ordered = sorted(sources, key=lambda name: (-sources[name]["pairs"], name))
    shown = {name: dict(sources[name]) for name in sorted(ordered[:SHOWN_SOURCES])}
    if rest := ordered[SHOWN_SOURCES:]:
        shown[f"{len(rest)} others"] = dict(_total(sources[name] for name in rest))
    return shown


def _total(counts: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total
