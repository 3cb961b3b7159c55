"""What a sweep looks like: a table of its trials, and a figure of how each went."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.sweep.trials import Result, of_several_losses
from pipeline.view.effect import shown as with_interval
from pipeline.view.tables import figure
from stages.train.best import score

_LABELS = {"eval/rewards/accuracies": "accuracy", "eval/rewards/margins": "margin"}
_EFFECTS = ("reward", "win rate", "kl")  # of the reward its gain
_SHOWN = ("eval/loss", "eval/rewards/accuracies", "eval/rewards/margins")


def plain(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row a trial: its fields, how far it is, where its policy lies, and what was last said of held-out pairs."""
    return [
        {
            "set": result.trial.fields,
            "state": _state(result),
            "fingerprint": result.step.fingerprint,
            "path": str(result.step.folder),
            "metrics": {key: value for key, value in result.last.items() if key == "step" or key.startswith("eval/")},
        }
        | ({"effect": result.effect} if result.effect else {})
        | ({"error": result.error} if result.error else {})
        for result in results
    ]


def print_results(results: Sequence[Result], console: Console, as_json: bool) -> None:
    """The best first, by train.best_metric; by accuracy where losses are of several kinds, whose scales differ."""
    if as_json:
        print(json.dumps(plain(results), indent=1))
        return
    names = list(results[0].trial.fields)
    metrics = dict.fromkeys([results[0].config.best_metric, *_SHOWN])
    shown = [name for name in metrics if any(name in result.last for result in results)]
    effects = [name for name in _EFFECTS if any(name in result.effect for result in results)]
    last = [name.rpartition(".")[2] for name in names]
    fields = last if len(set(last)) == len(last) else names
    labels = [_LABELS.get(name, name.removeprefix("eval/")) for name in shown]
    table = Table(*fields, "state", *labels, *effects, "policy")
    for result in sorted(results, key=_by_accuracy if of_several_losses(results) else _rank):
        values = [figure(result.last[name]) if name in result.last else "" for name in shown]
        table.add_row(
            *(escape(str(result.trial.fields[name])) for name in names),
            _state(result),
            *values,
            *(_effect(result, name) for name in effects),
            result.step.folder.name,
        )
    console.print(table)


def draw(results: Sequence[Result], folder: Path) -> None:
    """sweep-light.png and sweep-dark.png: train.best_metric against steps, a line a trial."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    metric = results[0].config.best_metric
    for name, style in (("light", "default"), ("dark", "dark_background")):
        with plt.style.context(style):
            drawn, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
            for result in results:
                lines = [line for line in result.metrics if metric in line]
                steps, values = [line["step"] for line in lines], [line[metric] for line in lines]
                axes.plot(steps, values, marker="o", markersize=3, label=result.trial.label)
            axes.set(xlabel="step", ylabel=metric)
            axes.legend(fontsize="small")
            drawn.savefig(folder / f"sweep-{name}.png", dpi=150)
            plt.close(drawn)


def _effect(result: Result, name: str) -> str:
    told = result.effect.get(name)
    return with_interval(told.get("gain", told)) if told else ""


def _state(result: Result) -> str:
    if result.error:
        return "failed"
    if result.finished:
        return "done"
    return f"stopped at step {result.metrics[-1]['step']}" if result.metrics else "not begun"


def _rank(result: Result) -> tuple[bool, float]:
    value = result.last.get(result.config.best_metric)
    return not result.finished, score(value, result.config) if value is not None else float("inf")


def _by_accuracy(result: Result) -> tuple[bool, float]:
    return not result.finished, -result.last.get("eval/rewards/accuracies", -1.0)
