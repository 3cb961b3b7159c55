"""The shard stage: read, parse, tokenize, drop with a reason, and write parts that follow from the pairs alone.

Two passes of Ray Data. Tasks of the first one tokenize a slice of a source each and leave fragments; tasks of the
second one make some parts each of them. What passes between them are files under `out`: nobody holds the set, and a run
that was killed goes on with the slices that are not done.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from stages.artifacts import PreferencePairs
from stages.config import Labels
from stages.errors import ContractError, out_of_ray
from stages.progress import Progress, Silent
from stages.samples import Triples
from stages.shard.config import ShardConfig, ShardResources, Source
from stages.shard.parts.part import LARGEST, merge_rejects
from stages.shard.reading.source import Slice
from stages.shard.reading.survey import sample, survey
from stages.shard.report.report import report_of
from stages.shard.shapes.tell import SAMPLE, tell_source
from stages.shard.task import Job, SliceDone, done_file, first_pass, second_pass

_MERGED_BYTES = 32 << 20  # of rows that a task of the second pass makes parts of; one cell may have more
_FEW = 4  # slices that the driver looks into by itself
_WANTED = ("tie", "held_out", "contaminated")  # reasons that are no fault of a set


def shard(
    config: ShardConfig,
    *,
    triples: Triples | None = None,
    replayed: Sequence[Triples] = (),
    out: Path,
    resources: ShardResources,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the PreferencePairs of `config` under `out` and return the facts of the work.

    `triples`: read instead of a source, and `replayed`, those of earlier rounds, with them.

    Raises RecipeError for a source or tokenizer that cannot serve, ContractError when too many rows are dropped.
    """
    progress = progress or Silent()
    if triples is not None:
        config = _of_judge(config, triples, replayed)
    with out_of_ray():
        work = survey(config, resources.rows_per_task, partial(_on_workers, resources.labels))
    told = [
        tell_source([text for _, _, text in sample(source, SAMPLE)], source, config) for source in config.all_sources
    ]
    num_parts = work.num_parts if config.num_parts == "auto" else config.num_parts
    shapes = [each.shape for each in told]
    job = Job(config, shapes, num_parts, str(out), str(_scratch(out, work.slices)))
    done = _tokenize(work.slices, job, resources.labels, progress)
    facts = _write_parts(done, job, resources.labels, progress)
    merge_rejects(out)
    dropped = {key.removeprefix("dropped/"): n for key, n in sorted(facts.items()) if key.startswith("dropped/")}
    _check_dropped(config, facts, dropped, out)
    counted = ["rows", "pairs", "train", "eval", "tokens", "cut_prompts", "cut_completions", "unended_completions"]
    counted += ["control_tokens", "prompt_tokens"]
    counts: dict[str, Any] = {key: facts[key] for key in (*counted, *(f"eval/{each.label}" for each in config.eval))}
    if config.rows == "labelled":
        counts |= {"labelled": True, "desirable": facts["desirable"]}
    notices = [*work.notices, *(notice for each in told for notice in each.notices)]
    return counts | {
        **{name: facts[name] for name in LARGEST},
        "dropped": dropped,
        "shape": ", ".join(dict.fromkeys(shapes)),
        "num_parts": num_parts,
        "sources": work.by_source(config, facts),
        "notices": notices + sorted({notice for each in done for notice in each.notices}),
        "report": report_of(out),
    }


def _of_judge(config: ShardConfig, triples: Triples, replayed: Sequence[Triples]) -> ShardConfig:
    """With sources: this round's triples, and those of earlier ones."""
    sources = []
    for number, each in enumerate((triples, *replayed)):
        columns = config.columns.model_copy(update={"margin": "margin"} if each.graded else {})
        name = f"replayed-{number}" if number else "judged"
        sources.append(Source(source=each.source, name=name, columns=columns))
    return config.model_copy(update={"sources": tuple(sources)})


def _on_workers(labels: Labels, function: Callable[[Slice], Any], pieces: Sequence[Slice]) -> list[Any]:
    """A few slices cost less here than their way to workers."""
    if len(pieces) <= _FEW:
        return list(map(function, pieces))
    task = ray.remote(lambda piece: function(piece)).options(label_selector=labels or None)
    return ray.get([task.remote(piece) for piece in pieces])


def _scratch(out: Path, work: Sequence[Slice]) -> Path:
    """The folder of the fragments of just these slices. What is left of a run that cut the source otherwise goes."""
    digest = hashlib.sha256(json.dumps([piece.as_row() for piece in work]).encode()).hexdigest()[:16]
    scratch = out / ".fragments" / digest
    for other in scratch.parent.glob("*"):
        if other != scratch:
            shutil.rmtree(other)
    scratch.mkdir(parents=True, exist_ok=True)
    return scratch


def _tokenize(work: Sequence[Slice], job: Job, labels: Labels, progress: Progress) -> list[SliceDone]:
    """The first pass."""
    left = [index for index in range(len(work)) if not done_file(job, index).exists()]
    progress.start(len(work), len(work) - len(left), "slices")
    items = [{"index": index, "slice": json.dumps(work[index].as_row())} for index in left]
    for finished, _ in enumerate(_rows(items, first_pass, {"job": job}, labels), len(work) - len(left) + 1):
        progress.advance(finished)
    return [SliceDone.read(done_file(job, index)) for index in range(len(work))]


def _write_parts(done: Sequence[SliceDone], job: Job, labels: Labels, progress: Progress) -> Counter[str]:
    """The second pass; the facts of all parts."""
    progress.start(job.num_parts, 0, "parts")
    groups = [{"first": first, "last": last} for first, last in _groups(np.sum([each.cells for each in done], axis=0))]
    known = {
        "job": job,
        "fragments": [name for each in done for name in each.fragments],
        "set_aside": [name for each in done for name in each.set_aside],
    }
    facts: Counter[str] = Counter()
    largest = dict.fromkeys(LARGEST, 0)
    for row in _rows(groups, second_pass, known, labels):
        found = json.loads(row["facts"])
        largest = {name: max(value, found.pop(name)) for name, value in largest.items()}
        facts.update(found)
        rejected = sum(n for name, n in found.items() if name.startswith("dropped/"))
        progress.made(found["pairs"], found["tokens"], rejected=rejected)
        progress.advance(facts["parts"])
    return facts | Counter(largest)


def _groups(cells: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last of cells that follow each other and have about as many bytes as a task should hold."""
    first = held = 0
    for cell, size in enumerate(cells):
        if held and held + size > _MERGED_BYTES:
            yield first, cell - 1
            first = cell
            held = 0
        held += size
    yield first, len(cells) - 1


def _rows(
    items: list[dict[str, Any]], task: Callable[..., Any], known: dict[str, Any], labels: Labels
) -> Iterator[dict[str, Any]]:
    """What a Ray task each makes of the items, as they come."""
    if items:
        tasks = ray.data.from_items(items, override_num_blocks=len(items))
        with out_of_ray():
            yield from tasks.map_batches(
                task, batch_size=1, batch_format="pyarrow", fn_kwargs=known, label_selector=labels or None
            ).iter_rows()


def _check_dropped(config: ShardConfig, facts: Counter[str], dropped: dict[str, int], out: Path) -> None:
    faults = sum(n for reason, n in dropped.items() if reason not in _WANTED)
    if not facts["pairs"] or faults > config.max_dropped_fraction * facts["rows"]:
        counts = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        rejects = PreferencePairs(out).rejects
        example = next((each for each in rejects() if each["reason"] not in _WANTED), None) or next(rejects())
        raise ContractError(
            f"{sum(dropped.values())} of {facts['rows']} rows of {config.named} make no pair ({counts}), more than "
            f"shard.max_dropped_fraction {config.max_dropped_fraction} allows. The first: row "
            f"{example['source_row']} of {example['source']}, {example['reason']}: {example['detail']}. "
            f"All stand with their reasons in {out / 'rejects.parquet'}. "
            "Mend the rows, or raise shard.max_dropped_fraction"
        )
