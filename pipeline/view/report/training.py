"""How training went: curves of metrics.jsonl laid over each other, what happened on the way, and every figure."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.view import likelihood
from pipeline.view.report.block import Block, Note, Section, cell, table
from pipeline.view.report.chart import Chart, Line, finite
from pipeline.view.report.run import Run, Seen, seen
from pipeline.view.report.thin import some, thinned
from pipeline.view.tables import figure
from stages.train.config import TrainConfig

_POINTS = 800  # of a curve, and fewer where there are many runs: a page stays below 3 MB
_ALL_POINTS, _ALL_ROWS, _ROWS = 2400, 300, 100
_MOST_GROUPS = 8  # sources or held-out sets that are drawn


@dataclass(frozen=True)
class _Drawn:
    name: str
    title: str
    y: str
    curves: tuple[tuple[str, str], ...]  # (metric, what it is called)
    log: bool = False


_DRAWN = (
    _Drawn("loss", "Loss", "loss", (("loss", "training"), ("eval/loss", "held out"))),
    _Drawn(
        "margins", "Reward margin", "reward",
        (("rewards/margins", "training"), ("eval/rewards/margins", "held out")),
    ),
    _Drawn(
        "accuracies", "Reward accuracy", "share of pairs",
        (("rewards/accuracies", "training"), ("eval/rewards/accuracies", "held out")),
    ),
    _Drawn(
        "rewards", "Rewards of both sides", "reward",
        (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")),
    ),
    _Drawn(
        "held-out-rewards", "Rewards of both sides, held out", "reward",
        (("eval/rewards/chosen", "chosen"), ("eval/rewards/rejected", "rejected")),
    ),
    _Drawn(
        "logps", "Log-probs of both sides", "nats a completion",
        (("logps/chosen", "chosen"), ("logps/rejected", "rejected")),
    ),
    _Drawn(
        "per-token", "Log-probs a token", "nats a token",
        (("logps/chosen_per_token", "chosen"), ("logps/rejected_per_token", "rejected")),
    ),
    _Drawn("implicit-kl", "Implicit KL", "nats", (("implicit_kl", "training"), ("eval/implicit_kl", "held out"))),
    _Drawn("grad-norm", "Norm of the gradient", "norm", (("grad_norm", "training"),)),
    _Drawn("lr", "Learning rate", "lr", (("lr", "training"),)),
    _Drawn("tokens-per-second", "Throughput", "tokens a second", (("tokens_per_second", "training"),)),
    _Drawn(
        "seconds", "Time of a step", "seconds",
        (("step_seconds", "whole step"), ("data_seconds", "waiting for pairs")),
    ),
    _Drawn("memory", "Peak memory", "GB", (("peak_memory_gb", "largest rank"),)),
)  # fmt: skip
_TABLE = (
    "loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected", "logps/chosen",
    "logps/rejected", "grad_norm", "lr", "tokens_per_second", "peak_memory_gb", "eval/loss", "eval/rewards/accuracies",
    "eval/rewards/margins",
)  # fmt: skip
_OUTCOME = {
    "loss": "loss", "eval/loss": "held-out loss", "eval/rewards/accuracies": "held-out accuracy",
    "eval/rewards/margins": "held-out margin",
}  # fmt: skip


def training(runs: Sequence[Run]) -> Section:
    every = seen(runs, "train")
    begun = [made for made in every if made.metrics]
    blocks: list[Block] = [Note(made.missing) for made in every if not made.metrics]
    blocks += [
        Note(f"{made.label}: not finished; step {made.metrics[-1]['step']} so far.") for made in begun if not made.done
    ]
    for made in begun:
        blocks += [Note(f"{made.label}: {notice}", warning=True) for notice in made.facts.get("notices", ())]
        blocks += [Note(f"{made.label}: {said}") for said in likelihood.told(made.metrics, _config(made))]
    blocks += _outcomes(begun)
    blocks += charts(begun)
    blocks += _events(begun)
    blocks += _settings(begun)
    for made in begun:
        blocks += _steps(made, min(_ROWS, max(10, _ALL_ROWS // len(begun))))
    return Section("training", "Training", blocks)


def charts(begun: Sequence[Seen]) -> list[Chart]:
    """Curves of all trainings in one chart a metric; one that nobody has is not drawn."""
    most = max(40, min(_POINTS, _ALL_POINTS // max(len(begun), 1)))
    made = [_chart(each, begun, most) for each in (*_DRAWN, *_groups(begun))]
    return [chart for chart in made if chart.lines]


def _chart(drawn: _Drawn, begun: Sequence[Seen], most: int) -> Chart:
    lines, longest = [], 0
    for made in begun:
        for number, (metric, called) in enumerate(drawn.curves):
            points = finite([(line["step"], line[metric]) for line in made.metrics if metric in line])
            if not points:
                continue
            longest = max(longest, len(points))
            several = len(begun) > 1
            lines.append(
                Line(
                    f"{made.label}, {called}" if several else called,
                    thinned(points, most),
                    made.colour if several else number,
                    dashed=number == 1 and metric.startswith("eval/") == drawn.curves[0][0].startswith("eval/"),
                    marked=metric.startswith("eval/"),
                )
            )
    events = tuple((float(step), 0.0) for made in begun for step, *_ in events_of(made))
    notes = []
    if longest > most:
        notes.append(
            f"Of up to {longest:,} steps the least and the greatest value of each stretch, from metrics.jsonl."
        )
    if events:
        notes.append("Upright lines: what happened on the way.")
    return Chart(f"train-{drawn.name}", drawn.title, "step", drawn.y, tuple(lines), events=events, note=" ".join(notes))


def _groups(begun: Sequence[Seen]) -> Iterator[_Drawn]:
    """Sources of the pairs, and named held-out sets: together, or of several trainings by themselves."""
    names = list(dict.fromkeys(name for made in begun for line in made.metrics for name in line))
    for prefix, said in (("train", "by source"), ("eval", "of each held-out set")):
        for metric, title in (("loss", "Loss"), ("rewards/accuracies", "Accuracy")):
            found = (re.fullmatch(f"{prefix}/(.+)/{metric}", name) for name in names)
            curves = tuple((each[0], each[1]) for each in found if each)[:_MOST_GROUPS]
            name = f"{prefix}-groups-{metric.rpartition('/')[2]}"
            if curves and len(begun) == 1:
                yield _Drawn(name, f"{title} {said}", metric, curves)
            elif curves:
                for number, (key, called) in enumerate(curves):
                    yield _Drawn(f"{name}-{number}", f"{title} of {called}", metric, ((key, called),))


def events_of(made: Seen) -> Iterator[tuple[int, str, str]]:
    """(step, what, more) of steps left out, restarts and stalls."""
    for line in made.metrics[1:]:
        if "loss" not in line and line["step"]:
            yield line["step"], "step left out", "its loss or gradient was not finite"
    for event in made.happened:
        yield event["step"], event["what"], event["more"]


def _events(begun: Sequence[Seen]) -> list[Block]:
    rows = [(made.label, *event) for made in begun for event in sorted(events_of(made))]
    if not rows:
        return [Note("No step was left out, and nothing stood still or was begun again.")] if begun else []
    return table("train-events", "What happened on the way", ("training", "step", "what", "more"), some(rows, 200))


def _outcomes(begun: Sequence[Seen]) -> list[Block]:
    def row(made: Seen) -> list[Any]:
        moved = made.facts.get("before and after", {})
        last = made.metrics[-1]
        found = [(key, moved.get(key) or _ends(made, key)) for key in _OUTCOME]
        ends = [value for _, both in found for value in (both or (None, None))]
        best = made.facts.get("best", {}).get("step")
        return [made.label, last["step"], *ends, last.get("skipped"), best, last.get("peak_memory_gb")]

    names = [f"{label}, {when}" for label in _OUTCOME.values() for when in ("first", "last")]
    columns = ("training", "steps", *names, "left out", "best step", "peak memory, GB")
    return table("train-outcome", "What training has come to", columns, map(row, begun))


def _config(made: Seen) -> TrainConfig:
    assert isinstance(made.step.config, TrainConfig)
    return made.step.config


def _ends(made: Seen, metric: str) -> list[float] | None:
    values = [line[metric] for line in made.metrics if metric in line]
    return [values[0], values[-1]] if values else None


def _settings(begun: Sequence[Seen]) -> list[Block]:
    """A row a field; of several trainings those first in which they differ."""
    each = [dict(_fields(made.step.config.model_dump(mode="json"))) for made in begun]
    fields = list(dict.fromkeys(key for told in each for key in told))
    differing = [key for key in fields if len({told.get(key) for told in each}) > 1]
    same = [key for key in fields if key not in differing]
    labels = [made.label for made in begun]

    def rows(keys: list[str]) -> list[list[str]]:
        return [[key, *(told.get(key, "") for told in each)] for key in keys]

    return [
        *table("train-differences", "Fields in which trainings differ", ("train", *labels), rows(differing)),
        *table("train-settings", "Fields of the training", ("train", *labels), rows(same), folded=True),
    ]


def _fields(config: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", figure(value)


def _steps(made: Seen, most: int) -> list[Block]:
    names = [name for name in _TABLE if any(name in line for line in made.metrics)]
    shown = some(made.metrics, most)
    note = "" if len(shown) == len(made.metrics) else f"{len(shown)} of {len(made.metrics):,} lines of metrics.jsonl."
    rows = ([line["step"], *(cell(line.get(name)) for name in names)] for line in shown)
    return table(
        f"{made.name}-steps", f"{made.label}: steps", ("step", *names), rows, note=note, folded=True
    )  # fmt: skip
