"""The shard stage: read, parse, tokenize, drop with a reason, and write parts that follow from the pairs alone.

Two passes of Ray Data. Tasks of the first one tokenize a slice of the source each and leave fragments; tasks of the
second one make some parts each of them. What passes between them are files under `out`: nobody holds the set, and a run
that was killed goes on with the slices that are not done.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray

from stages.errors import ContractError, RecipeError, out_of_ray
from stages.progress import Progress, Silent
from stages.shard.config import Shape, ShardConfig, ShardResources
from stages.shard.part import merge_rejects
from stages.shard.source import Slice, slices
from stages.shard.task import Job, SliceDone, done_file, first_pass, second_pass
from stages.shard.triple import detect_shape

_MERGED_BYTES = 32 << 20  # of rows that a task of the second pass makes parts of; one cell may have more


def shard(
    config: ShardConfig, *, out: Path, resources: ShardResources, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the PreferencePairs of `config` under `out` and return the facts of the work.

    Raises RecipeError for a source or tokenizer that cannot serve, ContractError when too many rows are dropped.
    """
    progress = progress or Silent()
    work = slices(config, resources.rows_per_task)
    shape = _shape(config, work)
    job = Job(config, shape, config.num_parts, str(out), str(_scratch(out, work)))
    done = _tokenize(work, job, progress)
    facts = _write_parts(done, job, progress)
    merge_rejects(out)
    dropped = {key.removeprefix("dropped/"): n for key, n in sorted(facts.items()) if key.startswith("dropped/")}
    _check_dropped(config, facts, dropped, out)
    counts = {key: facts[key] for key in ("rows", "pairs", "train", "eval", "tokens", "cut_prompts", "cut_completions")}
    if config.rows == "labelled":
        counts |= {"labelled": True, "desirable": facts["desirable"]}
    notices = sorted({notice for each in done for notice in each.notices})
    return counts | {"longest": facts["longest"], "dropped": dropped, "shape": shape, "notices": notices}


def _scratch(out: Path, work: Sequence[Slice]) -> Path:
    """The folder of the fragments of just these slices. What is left of a run that cut the source otherwise goes."""
    digest = hashlib.sha256(json.dumps([piece.as_row() for piece in work]).encode()).hexdigest()[:16]
    scratch = out / ".fragments" / digest
    for other in scratch.parent.glob("*"):
        if other != scratch:
            shutil.rmtree(other)
    scratch.mkdir(parents=True, exist_ok=True)
    return scratch


def _tokenize(work: Sequence[Slice], job: Job, progress: Progress) -> list[SliceDone]:
    """The first pass."""
    left = [index for index in range(len(work)) if not done_file(job, index).exists()]
    progress.start(len(work), len(work) - len(left), "tasks")
    items = [{"index": index, "slice": json.dumps(work[index].as_row())} for index in left]
    for finished, _ in enumerate(_rows(items, first_pass, {"job": job}), len(work) - len(left) + 1):
        progress.advance(finished)
    return [SliceDone.read(done_file(job, index)) for index in range(len(work))]


def _write_parts(done: Sequence[SliceDone], job: Job, progress: Progress) -> Counter[str]:
    """The second pass; the facts of all parts."""
    progress.start(job.num_parts, 0, "parts")
    groups = [{"first": first, "last": last} for first, last in _groups(np.sum([each.cells for each in done], axis=0))]
    known = {
        "job": job,
        "fragments": [name for each in done for name in each.fragments],
        "set_aside": [name for each in done for name in each.set_aside],
    }
    facts: Counter[str] = Counter()
    longest = 0
    for row in _rows(groups, second_pass, known):
        found = json.loads(row["facts"])
        longest = max(longest, found.pop("longest"))
        facts.update(found)
        progress.advance(facts["parts"])
    return facts | Counter(longest=longest)


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


def _rows(items: list[dict[str, Any]], task: Callable[..., Any], known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a Ray task each makes of the items, as they come."""
    if items:
        tasks = ray.data.from_items(items, override_num_blocks=len(items))
        with out_of_ray():
            yield from tasks.map_batches(task, batch_size=1, batch_format="pyarrow", fn_kwargs=known).iter_rows()


def _shape(config: ShardConfig, work: Sequence[Slice]) -> Shape:
    """Told from the first row."""
    first = next((text for piece in work[:1] for _, text in piece.rows()), None)
    if first is None:
        raise RecipeError(f"shard.source {config.source} has no rows")
    try:
        row = json.loads(first)
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"the first row of {config.source} is not JSON: {error}. One JSON object a line is read"
        ) from error
    if not isinstance(row, dict):
        raise RecipeError(f"the first row of {config.source} is a {type(row).__name__}, not a JSON object with columns")
    detected = detect_shape(row, config.columns, config.source)
    shape = detected if config.shape == "auto" else config.shape
    if shape == "labelled" and config.rows == "pairs":
        raise RecipeError(
            f"{config.source} holds labelled completions, of which no pairs can be made. Set shard.rows: labelled, and "
            "train.loss to one that takes them, as kto does"
        )
    return shape


def _check_dropped(config: ShardConfig, facts: Counter[str], dropped: dict[str, int], out: Path) -> None:
    if not facts["pairs"] or sum(dropped.values()) > config.max_dropped_fraction * facts["rows"]:
        counts = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        example = pq.read_table(out / "rejects.parquet").slice(0, 1).to_pylist()[0]
        raise ContractError(
            f"{sum(dropped.values())} of {facts['rows']} rows of {config.source} make no pair ({counts}), more than "
            f"shard.max_dropped_fraction {config.max_dropped_fraction} allows. The first: row "
            f"{example['source_row']} of {example['source']}, {example['reason']}: {example['detail']}. "
            f"All stand with their reasons in {out / 'rejects.parquet'}. "
            "Mend the rows, or raise shard.max_dropped_fraction"
        )
