"""What training has gained and paid: figures with their intervals, reward against KL, and texts side by side."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from pipeline.view.effect import is_estimate, read_samples, said_of
from pipeline.view.report.block import Block, Note, Sample, Samples, Section, Text, table
from pipeline.view.report.chart import Chart, Dot, Interval
from pipeline.view.report.run import Run, Seen, seen
from stages.evaluate.evaluation import WRITERS, Evaluation

_SAMPLES, _ALL_SAMPLES = 12, 48  # prompts, of a run and of the page
_LETTERS = 1500  # of a text


def evaluation(runs: Sequence[Run]) -> Section:
    every = seen(runs, "evaluate")
    done = [made for made in every if made.done]
    blocks: list[Block] = [Note(made.missing) for made in every if not made.done]
    blocks += _figures("held out", "Held-out pairs", done) + _figures("written", "What both models write", done)
    blocks += _frontier(done)
    for made in done:
        blocks += [
            Note(f"{made.label}: the judge failed {number} times: {fault}", warning=True)
            for fault, number in made.facts.get("faults", {}).items()
        ]
        blocks += _samples(made, max(2, min(_SAMPLES, _ALL_SAMPLES // len(done))))
    if not every:
        blocks = [Note("These recipes do not evaluate. Add evaluate: {} to ask what the policy has gained.")]
    return Section("evaluation", "Evaluation", blocks)


def _figures(key: str, caption: str, done: Sequence[Seen]) -> list[Block]:
    """A row a figure, a column an evaluation."""
    each = [dict(_flat(made.facts.get(key, {}))) for made in done]
    names = list(dict.fromkeys(name for told in each for name in told))
    return table(
        f"evaluate-{key.replace(' ', '-')}", f"{caption}, with intervals of 95 %",
        ("figure", *(made.label for made in done)), ([name, *(told.get(name) for told in each)] for name in names),
    )  # fmt: skip


def _flat(told: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in told.items():
        if isinstance(value, dict) and not is_estimate(value):
            found += _flat(value, f"{above}{key}, ")
        elif not isinstance(value, list):
            found.append((f"{above}{key}", value))
    return found


def _frontier(done: Sequence[Seen]) -> list[Block]:
    """What was gained, against what was paid."""
    dots = []
    for number, made in enumerate(done):
        told = made.facts.get("written", {})
        gain = told.get("reward", {}).get("gain") or told.get("win rate")
        if gain and told.get("kl") and None not in (gain["value"], told["kl"]["value"]):
            dots.append((Dot(made.label, Interval(**told["kl"]), Interval(**gain), number), "reward" in told))
    if not dots:
        return []
    y = "reward gained" if all(graded for _, graded in dots) else "win rate"
    title = f"{y.capitalize()} against KL"
    shown = tuple(dot for dot, graded in dots if graded == (y == "reward gained"))
    return [Chart("evaluate-frontier", title, "KL(policy || reference), nats", y, dots=shown)]


def _samples(made: Seen, count: int) -> list[Block]:
    rows = list(islice(read_samples(Evaluation(made.step.folder), count), count))
    if not rows:
        return []
    samples = tuple(
        Sample(
            _cut(row["prompt"]),
            tuple(Text(who, _cut(row[who]["text"]), said_of(row[who])) for who in reversed(WRITERS)),
        )
        for row in rows
    )
    return [Samples(f"{made.label}: samples side by side", samples)]


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]} .. ({len(text):,} letters)"
