"""What a plan and a run look like on the terminal."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.bill.bill import Bill
from pipeline.bill.table import print_bill
from pipeline.plan import Step, advice
from pipeline.runner import Done
from pipeline.view.effect import effect, is_estimate, shown
from pipeline.view.likelihood import told
from stages.artifacts import PolicyCheckpoint
from stages.train.config import TrainConfig


def print_plan(steps: list[Step], looked: list[str], as_json: bool, bill: Bill | None = None) -> None:
    """`looked`: what was seen of the first rows."""
    if as_json:
        rows = [
            {"stage": s.name, "state": s.state, "why": s.why, "path": str(s.folder), "fingerprint": s.fingerprint}
            | ({"looked": looked} if looked and s is steps[0] else {})
            | ({"bill": bill.of(s.name).plain} if bill else {})
            | ({"without_cache": asdict(bill.reference)} if bill and bill.reference and s.name == "train" else {})
            for s in steps
        ]
        print(json.dumps(rows, indent=1))
        return
    table = Table("stage", "state", "why", "path")
    for step in steps:
        table.add_row(step.name, step.state, escape(step.why), _near(step.folder))
    Console().print(table)
    if bill is not None:
        print_bill(bill, Console())
    for said in advice(steps):
        Console().print(f"[yellow]Warning:[/] {escape(said)}", soft_wrap=True, highlight=False)
    for line in looked:
        print_line(line, Console())


def print_line(line: str, console: Console) -> None:
    """A warning in its colour."""
    kind, colon, rest = line.partition(": ")
    told = f"[yellow]{kind}:[/] {escape(rest)}" if colon and kind == "Warning" else escape(line)
    console.print(told, soft_wrap=True, highlight=False)


def print_facts(step: Step, console: Console) -> None:
    """A row each; what is nested deeper than two levels in one row of its own a group."""
    table = Table("fact", "value", title=f"{step.name}  {step.folder}", title_justify="left")
    for key, value in rows_of(step.manifest.facts | step.manifest.provenance):
        table.add_row(escape(key), escape(value))
    console.print(table)


def rows_of(facts: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """(name, figures): groups of groups by dotted names, a list of groups a line each."""
    for key, value in facts.items():
        if isinstance(value, dict) and any(isinstance(each, dict) for each in value.values()):
            yield from rows_of(value, f"{above}{key}.")
        elif isinstance(value, list) and value and all(isinstance(each, dict | str) for each in value):
            yield f"{above}{key}", "\n".join(map(figure, value))
        else:
            yield f"{above}{key}", figure(value)


def print_done(done: list[Done], console: Console) -> None:
    table = Table("stage", "state", "rows or steps", "tokens", "seconds", "key figures")
    for column in table.columns[:-1]:
        column.no_wrap = True
    for row in done:
        facts = row.step.manifest.facts
        number, noun = counted(facts)
        tokens = f"{facts['tokens']:,}" if "tokens" in facts else ""
        figures = "\n".join(key_figures(facts))
        table.add_row(row.step.name, row.state, f"{number} {noun}", tokens, f"{row.seconds:.1f}", figures)
    console.print(table)
    for row in done:
        console.print(f"{row.step.name}: {_near(row.step.folder)}", soft_wrap=True, highlight=False)
    for row in done:
        facts = row.step.manifest.facts
        for warning in filter(None, (*facts.get("notices", ()), facts.get("calibration", {}).get("warning"))):
            print_line(f"Warning: {warning}", console)
    trained = [row.step.folder for row in done if row.step.stage.output is PolicyCheckpoint]
    for row in done:
        if isinstance(row.step.config, TrainConfig):
            for said in told(PolicyCheckpoint(row.step.folder).metrics, row.step.config):
                console.print(said, soft_wrap=True, highlight=False, markup=False)
    if trained:
        console.print(f"The policy: {PolicyCheckpoint(trained[-1]).policy}", soft_wrap=True)


def counted(facts: dict[str, Any]) -> tuple[int, str]:
    """How many of what a stage has made."""
    noun = next(name for name in ("steps", "prompts", "pairs", "triples", "completions") if name in facts)
    return facts[noun], noun


def key_figures(facts: dict[str, Any]) -> Iterator[str]:
    yield from effect(facts)
    known = facts | facts.get("before and after", {}) | _of_report(facts.get("report", {})) | _of_reference(facts)
    if "per token" in (calibration := facts.get("calibration", {})):
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
    "unended_completions": "without an end",
    "against": "against each other",
    "near_duplicates": "held out near trained",
    "longer_chosen": "longer chosen",
    "paths": "by",
    "mean_tokens": "tokens each",
    "per_token": "a token",  # nats
    "mean_margin": "margin",
    "faults": "faults",
    "failed": "failed",
    "taken_over": "taken over",
    "unscored": "unscored",
    "ref_accuracy": "ref accuracy",
    "ref_margin": "ref margin",
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


def _of_report(report: dict[str, Any]) -> dict[str, Any]:
    alike = report.get("alike", {})
    return {
        "against": alike.get("contradicting"),
        "near_duplicates": alike.get("near_duplicates"),
        "longer_chosen": report.get("length_bias", {}).get("longer_chosen"),
    }


def _of_reference(facts: dict[str, Any]) -> dict[str, Any]:
    reference = facts.get("reference", {})
    return {"ref_accuracy": reference.get("accuracy"), "ref_margin": reference.get("margin")}


def _near(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def figure(value: Any) -> str:
    if is_estimate(value):
        return shown(value)
    if isinstance(value, dict):
        return " ".join(f"{key} {figure(each)}" for key, each in value.items())
    if isinstance(value, list):
        return " -> ".join(map(figure, value))
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"
