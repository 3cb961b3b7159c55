"""The runs that a report is of, and what the store has of each of their stages."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.plan import State, Step
from pipeline.store import Store
from stages.artifacts import PolicyCheckpoint
from stages.train.following.happened import Event, Happened
from stages.train.following.metrics_log import Metrics, MetricsLog


@dataclass(frozen=True)
class Run:
    name: str
    steps: list[Step]
    store: Store


@dataclass(frozen=True)
class Seen:
    """One stage, of one or more runs that share it."""

    label: str  # the runs that have it, where there are several; and its stage, where that is in doubt
    step: Step
    draft: Path  # where it is made
    colour: int = 0

    @property
    def done(self) -> bool:
        return self.step.state == State.HIT

    @property
    def name(self) -> str:
        """Unique in a page."""
        return f"{self.step.name}-{self.step.fingerprint[:8]}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        return self.step.manifest.facts if self.done else {}

    @cached_property
    def metrics(self) -> list[Metrics]:
        """Of a training, as far as it is."""
        if self.done:
            return PolicyCheckpoint(self.step.folder).metrics
        return MetricsLog(self.draft / "metrics.jsonl").read()

    @cached_property
    def happened(self) -> list[Event]:
        """To a training, beside its steps."""
        return self.facts.get("happened", []) if self.done else Happened(self.draft).read()

    @property
    def missing(self) -> str:
        """Why there is nothing to show."""
        return f"{self.label}: {self.step.state}" + (f", {self.step.why}" if self.step.why else "")


def named(runs: Sequence[tuple[Path, Run]]) -> list[Run]:
    """By recipe; those of one name by their files too, and those of one file by a number."""
    found: list[Run] = []
    for file, run in runs:
        others = [other.name for _, other in runs]
        name = run.name if others.count(run.name) == 1 else f"{run.name} ({file})"
        taken = [other.name for other in found]
        number = sum(each == name or each.startswith(f"{name} #") for each in taken)
        found.append(replace(run, name=f"{name} #{number + 1}" if number else name))
    return found


def path_of(runs: Sequence[Run]) -> Path:
    """{work}/reports/NAME-FINGERPRINT/report.html, by the last stage; of several runs by all of them."""
    prints = [run.steps[-1].fingerprint for run in runs]
    print_ = prints[0] if len(prints) == 1 else hashlib.sha256(" ".join(prints).encode()).hexdigest()
    name = runs[0].name if len(runs) == 1 else f"{runs[0].name}-and-{len(runs) - 1}-more"
    readable = re.sub(r"[^\w.=-]+", "-", name)[:60].strip(".-")
    return runs[0].store.work / "reports" / f"{readable}-{print_[:12]}" / "report.html"


def seen(runs: Sequence[Run], stage: str) -> list[Seen]:
    """Each artifact of a stage once, whoever has it, in the order of the runs."""
    found: dict[str, tuple[Step, Store, list[str]]] = {}
    for run in runs:
        for step in run.steps:
            if step.stage.name == stage:
                found.setdefault(step.fingerprint, (step, run.store, []))[2].append(run.name)
    made = []
    for number, (step, store, names) in enumerate(found.values()):
        who = ["all runs"] if len(runs) > 1 and len({*names}) == len(runs) else names if len(runs) > 1 else []
        several = [*who, *([step.name] if len(runs) == 1 or step.name != stage else [])]
        label = " · ".join(several) if len(several) < 5 else f"{several[0]} and {len(several) - 1} more"
        made.append(Seen(label, step, store.draft(stage, step.fingerprint), number))
    return made
