"""What a plan and a run look like on the terminal."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.plan import Step, advice
from pipeline.runner import Done
from stages.artifacts import PolicyCheckpoint


def print_plan(steps: list[Step], as_json: bool) -> None:
    if as_json:
        rows = [
            {"stage": s.name, "state": s.state, "why": s.why, "path": str(s.folder), "fingerprint": s.fingerprint}
            for s in steps
        ]
        print(json.dumps(rows, indent=1))
        return
    table = Table("stage", "state", "why", "path")
    for step in steps:
        table.add_row(step.name, step.state, escape(step.why), _near(step.folder))
    Console().print(table)
    for said in advice(steps):
        Console().print(f"[yellow]Warning:[/] {escape(said)}", soft_wrap=True, highlight=False)


def print_done(done: list[Done], console: Console) -> None:
    table = Table("stage", "state", "rows or steps", "tokens", "seconds", "key figures")
    for column in table.columns[:-1]:
        column.no_wrap = True
    for row in done:
        facts = row.step.manifest.facts
        count = f"{facts['steps']} steps" if "steps" in facts else f"{facts['pairs']} pairs"
        tokens = f"{facts['tokens']:,}" if "tokens" in facts else ""
        figures = "\n".join(_key_figures(facts))
        table.add_row(row.step.name, row.state, count, tokens, f"{row.seconds:.1f}", figures)
    console.print(table)
    for row in done:
        console.print(f"{row.step.name}: {_near(row.step.folder)}", soft_wrap=True, highlight=False)
    for row in done:
        if warning := row.step.manifest.facts.get("calibration", {}).get("warning"):
            console.print(f"[yellow]Warning:[/] {escape(warning)}", soft_wrap=True)
    if done[-1].step.stage.output is PolicyCheckpoint:
        console.print(f"The policy: {PolicyCheckpoint(done[-1].step.folder).policy}", soft_wrap=True)


def _key_figures(facts: dict[str, Any]) -> Iterator[str]:
    known = facts | facts.get("before and after", {})
    if calibration := facts.get("calibration"):
        known |= {"off trainer": calibration["per token"]["sd"], "margin noise": calibration["margin"]["sd"]}
    for key, label in _KEY_FIGURES.items():
        value = known.get(key)
        if any(value.values()) if isinstance(value, dict) else value:
            yield f"{label} {figure(known[key])}"
    # Of each named held-out set, and of each source of the others where there are several.
    for key in facts.get("before and after", {}):
        name = key.removeprefix("eval/").removesuffix("/loss")
        if key.endswith("/loss") and key != "eval/loss":
            accuracy = known.get(f"eval/{name}/rewards/accuracies")
            yield f"{name}: loss {figure(known[key])}" + (f", accuracy {figure(accuracy)}" if accuracy else "")


_KEY_FIGURES = {
    "train": "train",
    "eval": "eval",
    "desirable": "desirable",
    "dropped": "dropped",
    "cut_prompts": "cut prompts",
    "cut_completions": "cut completions",
    "paths": "by",
    "taken_over": "taken over",
    "unscored": "unscored",
    "off trainer": "off trainer",  # standard deviation, nats a token
    "margin noise": "margin noise",
    "without_margin": "without margin",
    "check/ref_drift": "ref drift",
    "loss": "loss",
    "eval/loss": "eval loss",
    "eval/rewards/accuracies": "accuracy",
    "eval/rewards/margins": "margin",
    "best": "best:",
    "stopped early": "stopped early",
}


def _near(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def figure(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {figure(each)}" for key, each in value.items())
    if isinstance(value, list):
        return " -> ".join(map(figure, value))
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"
