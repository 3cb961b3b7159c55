"""What was read, drawn and judged, and what it was made into: facts of sample, judge and shard, and lengths."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.view.report.block import Block, Note, Section, facts_table, table
from pipeline.view.report.chart import Chart, Line
from pipeline.view.report.run import Run, Seen, seen
from stages import schema
from stages.artifacts import PreferencePairs

MOST_PAIRS = 20_000  # whose lengths are drawn
_BINS = 40
_COUNTS = ("rows", "pairs", "train", "eval", "tokens", "longest", "cut_prompts", "cut_completions", "desirable")
_ALIKE = {
    "duplicates": "rows that were there already",
    "prompts": "different prompts",
    "swapped": "couples of completions in both orders",
    "contradicting": "completions preferred here and not there",
    "near_duplicates": "held-out prompts that training nearly has",
}
_BIAS = {
    "longer_chosen": "share of pairs whose chosen is longer",
    "same_length": "share of one length",
    "mean_difference": "chosen minus rejected, mean tokens",
    "correlation_with_margin": "correlation of that with the margin",
}


def data(runs: Sequence[Run]) -> Section:
    blocks: list[Block] = []
    for stage in ("sample", "judge"):
        for made in seen(runs, stage):
            blocks += _plain(made)
    for made in seen(runs, "shard"):
        blocks += _pairs(made) if made.done else [Note(made.missing)]
    return Section("data", "Data", blocks)


def _plain(made: Seen) -> list[Block]:
    if not made.done:
        return [Note(made.missing)]
    plain = {key: value for key, value in made.facts.items() if isinstance(value, int | float | str)}
    groups = {
        f"{key}: {name}": value for key in ("dropped", "faults") for name, value in made.facts.get(key, {}).items()
    }
    return facts_table(made.name, f"{made.label}: what {made.step.name} has made", plain | groups)


def _pairs(made: Seen) -> list[Block]:
    facts, label, name = made.facts, made.label, made.name
    report = facts.get("report", {})
    counts = {key: facts[key] for key in facts if key in _COUNTS or key.startswith("eval/")}
    blocks: list[Block] = [Note(notice, warning=True) for notice in facts.get("notices", ())]
    blocks += facts_table(f"{name}-counts", f"{label}: rows and pairs", counts)
    lengths = report.get("lengths", {})
    spread = ("min", "median", "p95", "max", "cut")
    blocks += table(
        f"{name}-lengths", f"{label}: lengths in tokens, and how many were cut", ("side", *spread),
        ([side, *(told.get(each) for each in spread)] for side, told in lengths.items()),
    )  # fmt: skip
    blocks += _lengths(made)
    dropped = facts.get("dropped", {})
    if dropped:
        blocks += table(
            f"{name}-dropped", f"{label}: rows set aside, by reason", ("reason", "rows"), dropped.items(),
            note="Each of them, with its reason: raydpo show RECIPE --rejects",
        )  # fmt: skip
    else:
        blocks.append(Note(f"{label}: no row was set aside."))
    alike = {words: report.get("alike", {}).get(key) for key, words in _ALIKE.items()}
    told = {words: value for words, value in alike.items() if value is not None}
    blocks += facts_table(f"{name}-alike", f"{label}: duplicates and overlap of the splits", told)
    bias = {words: report.get("length_bias", {}).get(key) for key, words in _BIAS.items()}
    told = {words: value for words, value in bias.items() if value is not None}
    blocks += facts_table(f"{name}-bias", f"{label}: does length give the preferred one away?", told)
    columns = ("pairs", "train", "held_out", "set_aside")
    blocks += table(
        f"{name}-sources", f"{label}: sources", ("source", "pairs", "train", "held out", "set aside"),
        ([source, *(told.get(each, 0) for each in columns)] for source, told in report.get("sources", {}).items()),
    )  # fmt: skip
    return blocks


def _lengths(made: Seen) -> list[Block]:
    values = _measured(made.step.folder, MOST_PAIRS)
    counted, total = len(values.get("prompt", ())), made.facts["pairs"]
    if not counted:
        return []
    edges = np.linspace(0, max(each.max() for each in values.values()) + 1, _BINS + 1)
    lines = tuple(outline(side, each, edges, number) for number, (side, each) in enumerate(values.items()))
    note = "" if counted == total else first_ones(counted, total)
    return [Chart(f"{made.name}-tokens", f"{made.label}: lengths", "tokens", "pairs", lines, note=note)]


@lru_cache(maxsize=32)
def _measured(folder: Path, most: int) -> dict[str, np.ndarray]:
    """Tokens of each side, of parts until there are `most` pairs; kept, as artifacts do not change."""
    pairs, counted = PreferencePairs(folder), 0
    names = ("prompt", *(schema.LABELLED_SIDES[:1] if pairs.labelled else schema.PAIR_SIDES))
    found: dict[str, list[Any]] = {}
    for part in pairs.parts:
        if counted >= most:
            break
        columns = pairs.columns(part, [f"{side}_ids" for side in names])
        for side in names:
            found.setdefault(side, []).append(pc.list_value_length(columns[f"{side}_ids"]).to_numpy())
        counted += len(columns)
    return {side: np.concatenate(each) for side, each in found.items()} if counted else {}


def first_ones(counted: int, total: int) -> str:
    return f"Of {counted:,} of {total:,} pairs: the first ones, which are in the order of a hash."


def outline(label: str, values: np.ndarray, edges: np.ndarray, colour: int) -> Line:
    """A histogram."""
    counts, _ = np.histogram(values, edges)
    ends = np.concatenate([counts, counts[-1:]])
    points = tuple((float(x), float(y)) for x, y in zip(edges, ends, strict=True))
    return Line(label, points, colour, dashed=colour == 1, steps=True)
