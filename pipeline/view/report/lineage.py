"""Which artifact was made from which, by what, and under which name."""

from collections.abc import Sequence

from pipeline.plan import State
from pipeline.store import RECORDED
from pipeline.view.report.block import Block, Cell, Note, Section, cell, table
from pipeline.view.report.run import Run, Seen, seen
from pipeline.view.tables import counted, key_figures, rows_of

_SHORT = 12  # digits of a fingerprint, as the store names folders
_LETTERS = 200  # of a field


def lineage(runs: Sequence[Run]) -> Section:
    stages = dict.fromkeys(step.stage.name for run in runs for step in run.steps)
    every = [made for stage in stages for made in seen(runs, stage) if made.step.state != State.NOT_NEEDED]
    skipped = [made for stage in stages for made in seen(runs, stage) if made.step.state == State.NOT_NEEDED]
    blocks: list[Block] = [*_artifacts(every), *(Note(made.missing) for made in skipped)]
    for made in every:
        blocks += _identity(made)
    return Section("lineage", "Lineage", blocks)


def _artifacts(every: Sequence[Seen]) -> list[Block]:
    known = {made.step.fingerprint: made for made in every}

    def row(made: Seen) -> list[object]:
        step = made.step
        inputs = [(name, known[of]) for name, of in step.payload["inputs"].items() if of in known]
        links = tuple((f"{name} {made_of.step.fingerprint[:_SHORT]}", made_of.name) for name, made_of in inputs)
        told = [made.label, Cell(step.fingerprint[:_SHORT], anchor=made.name), str(step.state), Cell("", links=links)]
        if not made.done:
            return [*told, *[None] * 6]
        manifest = step.manifest
        provenance = manifest.provenance
        versions = ", ".join(f"{key} {provenance[key]}" for key in RECORDED if key in provenance)
        return [
            *told, len(manifest.files), sum(record.bytes for record in manifest.files), provenance.get("finished"),
            provenance.get("seconds"), provenance.get("machine"), f"python {provenance.get('python')}, {versions}",
        ]  # fmt: skip

    columns = (
        "stage",
        "fingerprint",
        "state",
        "made from",
        "files",
        "bytes",
        "finished",
        "seconds",
        "machine",
        "versions",
    )
    return table("artifacts", "Artifacts", columns, map(row, every))


def _identity(made: Seen) -> list[Block]:
    """All that its fingerprint is of, and where it lies."""
    payload = made.step.payload
    hashed = rows_of({"version": payload["version"], **payload["config"], **payload["inputs"]})
    rows = [("folder", str(made.step.folder)), ("fingerprint", made.step.fingerprint), *hashed]
    short = ([key, value if len(value) <= _LETTERS else f"{value[:_LETTERS]} .."] for key, value in rows)
    return table(
        f"{made.name}-identity",
        f"{made.label}: what the fingerprint of {made.step.name} is of",
        ("field", "value"),
        short,
        folded=True,
    )


def at_a_glance(runs: Sequence[Run]) -> Section:
    """How far each stage is."""
    rows = []
    for run in runs:
        for step in run.steps:
            done = step.state == State.HIT
            facts = step.manifest.facts if done else {}
            number, noun = counted(facts) if done else (None, "")
            count = cell(number)
            more = Cell(f"{count.text} {noun}".strip(), count.value)
            seconds = step.manifest.provenance.get("seconds") if done else None
            said = "; ".join(key_figures(facts)) if done else step.why
            rows.append([run.name, step.name, str(step.state), more, facts.get("tokens"), seconds, said])
    return Section("stages", "At a glance", table(
        "glance", "Stages", ("run", "stage", "state", "rows or steps", "tokens", "seconds", "key figures, or why"), rows
    ))  # fmt: skip
