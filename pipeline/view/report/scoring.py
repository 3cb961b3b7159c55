"""What the reference says of the pairs, how exactly, and how fast that was had."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from pipeline.view.report.block import Block, Note, Section, facts_table, table
from pipeline.view.report.chart import Chart
from pipeline.view.report.data import MOST_PAIRS, first_ones, outline
from pipeline.view.report.run import Run, Seen, seen
from stages import schema
from stages.artifacts import ReferenceLogprobs

_BINS = 40
_COUNTS = ("pairs", "tokens", "scored", "taken_over", "backend", "bytes_per_pair")
_OUTLIER = ("per_token", "side", "source", "source_row", "pair_id")
_CALIBRATED = ("per token", "per completion", "margin")


def scoring(runs: Sequence[Run]) -> Section:
    blocks: list[Block] = []
    for made in seen(runs, "score"):
        blocks += _scored(made) if made.done else [Note(made.missing)]
    return Section("scoring", "Scoring by the reference", blocks)


def _scored(made: Seen) -> list[Block]:
    facts, label, name = made.facts, made.label, made.name
    told = {key: facts[key] for key in _COUNTS if key in facts}
    told |= {f"unscored, {split}": number for split, number in facts.get("unscored", {}).items()}
    told |= {"by": ", ".join(facts.get("paths", ()))} if facts.get("paths") else {}
    blocks = facts_table(f"{name}-counts", f"{label}: what was scored", told)
    actors = facts.get("actors", {})
    blocks += table(
        f"{name}-actors", f"{label}: throughput",
        ("actor", "parts", "pairs", "tokens", "seconds", "tokens a second", "peak memory, GB"),
        (
            [
                actor, each["parts"], each["pairs"], each["tokens"], each["seconds"],
                each["tokens"] / each["seconds"] if each["seconds"] else None,
                each.get("peak_gpu_memory_gb", each.get("peak_memory_gb")),
            ]
            for actor, each in actors.items()
        ),
    )  # fmt: skip
    blocks += _calibration(made)
    reference = facts.get("reference", {})
    known = {
        "accuracy: chosen has the greater log-prob": reference.get("accuracy"),
        "margin, nats": reference.get("margin"),
        **{f"a token of {side}, nats": value for side, value in reference.get("per_token", {}).items()},
    }
    known = {key: value for key, value in known.items() if value is not None}
    blocks += facts_table(f"{name}-reference", f"{label}: what the reference thinks of the pairs", known)
    blocks += _distributions(made)
    blocks += table(
        f"{name}-outliers", f"{label}: what the reference finds strangest",
        ("nats a token", "side", "source", "row", "pair"),
        ([each[key] for key in _OUTLIER] for each in reference.get("outliers", ())),
    )  # fmt: skip
    return blocks


def _calibration(made: Seen) -> list[Block]:
    told = made.facts.get("calibration")
    if not told:
        return [Note(f"{made.label}: not compared with the forward pass of training.")]
    blocks: list[Block] = [Note(told["warning"], warning=True)] if "warning" in told else []
    spread = ("mean", "sd", "p95", "max")
    return blocks + table(
        f"{made.name}-calibration",
        f"{made.label}: cached minus computed by training, nats, of {told.get('pairs', 0)} pairs",
        ("of", *spread), ([key, *(told[key][each] for each in spread)] for key in _CALIBRATED if key in told),
        note=f"The margin is times beta, {told['beta']:g}." if "beta" in told else "",
    )  # fmt: skip


def _distributions(made: Seen) -> list[Block]:
    """Of log-probs a token, and of margins."""
    means, margins = _measured(made.step.folder, MOST_PAIRS)
    counted = len(margins)
    if not counted:
        return []
    total = made.facts["pairs"] - sum(made.facts.get("unscored", {}).values())
    note = "" if counted == total else first_ones(counted, total)
    shown: list[Block] = [_histogram(f"{made.name}-per-token", f"{made.label}: log-prob a token", means, note)]
    if "chosen" in means:
        both = {"chosen minus rejected": margins}
        shown.append(_histogram(f"{made.name}-margins", f"{made.label}: margin of the reference", both, note))
    return shown


@lru_cache(maxsize=32)
def _measured(folder: Path, most: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Means over the tokens of each side, and first minus second side; of parts until there are `most` pairs."""
    logprobs, counted = ReferenceLogprobs(folder), 0
    means: dict[str, list[np.ndarray]] = {}
    margins: list[np.ndarray] = [np.empty(0)]
    for part in logprobs.parts:
        if counted >= most:
            break
        rows = logprobs.read_unchecked(part)
        rows = rows.filter(pc.is_null(rows["error"]))
        sides = schema.sides(rows.column_names)
        sums = {side: rows[f"ref_{side}_logps"].to_numpy() for side in sides}
        for side in sides:
            tokens = pc.list_value_length(rows[f"ref_{side}_token_logps"]).to_numpy()
            means.setdefault(side, []).append(sums[side] / np.maximum(tokens, 1))
        margins.append(sums[sides[0]] - sums[sides[1]])
        counted += len(rows)
    return {side: np.concatenate(each) for side, each in means.items()}, np.concatenate(margins)


def _histogram(name: str, title: str, values: dict[str, np.ndarray], note: str) -> Chart:
    """Without the outermost thousandths, which would leave no room for the others."""
    note = f"{note} The outermost thousandth on each side is not drawn.".strip()
    every = np.concatenate(list(values.values()))
    low, high = np.quantile(every, [0.001, 0.999])
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    lines = tuple(outline(side, each, edges, number) for number, (side, each) in enumerate(values.items()))
    return Chart(name, title, "nats", "pairs", lines, note=note)
