"""What training has done to what the policy writes: figures beside each other, and texts side by side."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.evaluate.evaluation import WRITERS, Evaluation


def effect(facts: dict[str, Any]) -> Iterator[str]:
    """Lines of the closing table; of the reference first, then of the policy."""
    for name, told in facts.get("held out", {}).items():
        short = name.removeprefix("eval/") if name != "eval" else "held out"
        yield f"{short}: loss {shown(told['loss'])}, accuracy {shown(told['rewards/accuracies'])}"
    written = facts.get("written", {})
    for key, label in (("reward", "reward"), ("length", "tokens")):
        if told := written.get(key):
            gain = f", gain {shown(told['gain'])}" if "gain" in told else ""
            yield f"{label} {told['reference']['value']:.3g} -> {told['policy']['value']:.3g}{gain}"
    for key, label in (("win rate", "win rate"), ("win rate, length-controlled", "of one length"), ("kl", "KL")):
        if key in written:
            yield f"{label} {shown(written[key])}"
    if "contradictions" in written:  # of the judge, when the two texts change places
        yield f"contradictions {written['contradictions']:.3g} of {written['judged']} verdicts"


def is_estimate(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"value", "low", "high"}


def shown(estimate: dict[str, float | None]) -> str:
    """A figure with its interval, where it has one."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    told = "none" if value is None else f"{value:.3g}"
    return told if low is None or high is None else f"{told} [{low:.3g}, {high:.3g}]"


def read_samples(evaluation: Evaluation, count: int) -> list[dict[str, Any]]:
    """The first sample of the first `count` prompts. They are in the order of a hash, so the first are any."""
    firsts = (row for row in evaluation.samples() if row["sample"] == 0)
    return [_figures(row) for row in islice(firsts, count)]


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    """Texts and sums; `log_ratio`: log(policy / reference) of a text, nats, whose mean over the policy's is the KL."""
    told: dict[str, Any] = {key: row[key] for key in ("prompt_id", "split", "prompt")}
    for writer in WRITERS:
        told[writer] = {
            "text": row[f"{writer}_text"],
            "tokens": len(row[f"{writer}_ids"]),
            "stopped": row[f"{writer}_stopped"],
            "reward": row[f"{writer}_reward"],
            "log_ratio": sum(row[f"{writer}_by_policy"]) - sum(row[f"{writer}_by_reference"]),
        }
    if row.get("policy_first") is not None:
        preferred = (row["policy_first"] + row["policy_second"]) / 2
        told["policy"]["preferred"], told["reference"]["preferred"] = preferred, 1 - preferred
    return told


def print_samples(samples: list[dict[str, Any]], facts: dict[str, Any], console: Console) -> None:
    for sample in samples:
        console.print(Text(f"\n{sample['prompt'].strip()}", "bold cyan"))
        table = Table("reference", "policy", width=console.width, show_lines=False)
        for column in table.columns:
            column.ratio = 1
        table.add_row(*(Text(sample[writer]["text"].strip()) for writer in reversed(WRITERS)), end_section=True)
        table.add_row(*(Text(said_of(sample[writer]), "dim") for writer in reversed(WRITERS)))
        console.print(table)
    console.print()
    for line in effect(facts):
        console.print(line, highlight=False, markup=False)
    for fault, number in facts.get("faults", {}).items():
        console.print(f"the judge failed {number} times: {fault}", highlight=False, markup=False)


def said_of(written: dict[str, Any]) -> str:
    """Of one text."""
    reward = "" if written["reward"] is None else f"reward {written['reward']:.3g}, "
    if "preferred" in written:
        reward = f"preferred {written['preferred']:g}, "
    end = "" if written["stopped"] else ", cut"
    return f"{reward}{written['tokens']} tokens{end}, log policy/reference {written['log_ratio']:.2f}"


def as_json(samples: list[dict[str, Any]]) -> str:
    return json.dumps({"samples": samples}, indent=1, ensure_ascii=False)
