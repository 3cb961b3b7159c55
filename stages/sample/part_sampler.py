"""The callable of the actor pool: a part of prompts goes in, a part of completions is on disk."""

import json
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages import digests, schema
from stages.engine.generation import Completion, Generator
from stages.engine.shared import SharedGenerator
from stages.names import number_of
from stages.pool.attempts import Attempts
from stages.pool.careful import Company, computed, started
from stages.sample.config import SampleConfig, SampleResources
from stages.sample.known import KnownCompletions
from stages.sample.prompts import part_of
from stages.samples import COMPLETIONS, PROMPTS

_DRAWN = COMPLETIONS.names[len(PROMPTS) :]


@dataclass(frozen=True)
class Job:
    config: SampleConfig
    resources: SampleResources
    prompts: Path  # the folder of their parts
    num_parts: int
    longest: int  # tokens of the longest prompt
    model: int  # which of the config's
    known: KnownCompletions
    out: Path


def engine_starts(job: Job) -> Attempts:
    """Those that failed since the last one that did not, of all actors; actors that start right now are among them."""
    return Attempts(job.out / ".attempts" / "engine", job.resources.attempts)


def reports_of(out: Path) -> Path:
    """The folder of a report for each part, so that the facts cover all runs that an artifact took to make."""
    return out / ".reports"


class PartSampler:
    """Its state is one engine; its effect is one part on disk a call. An actor has two calls at a time, and the engine
    draws for both: so it is full until the last part's end.
    """

    def __init__(self, job: Job):
        self.job = job
        self._engine = SharedGenerator(self._generator)
        self._company = Company()

    def _generator(self) -> Generator:
        """Made at the first prompts: an error of __init__ would reach the driver as mere text."""
        job = self.job
        model = job.config.models[job.model]
        return started(
            engine_starts(job),
            job.resources.actors,
            model,
            lambda: Generator(model, job.config.dtype, job.longest, job.config, job.resources),
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Draw for the part that `batch` names, and report in one row.

        Prompts for which nothing can be drawn are set aside with their error. Raises ContractError where that does not
        help.
        """
        job, part = self.job, batch["part"][0].as_py()
        number = number_of(part) - job.model * job.num_parts
        prompts = schema.read_part(part_of(job.prompts, number), (PROMPTS,), f"Delete {job.prompts}, and run again")
        known = job.known.find(number, job.num_parts, job.model, prompts)
        new = prompts.filter(pc.invert(pc.is_in(prompts["prompt_id"], known["prompt_id"])))
        attempts = Attempts(job.out / ".attempts" / part, job.resources.attempts)
        drawn = self._drawn(new, attempts, part) if len(new) else COMPLETIONS.empty_table()
        whole = pa.concat_tables([_placed(known, prompts), drawn])
        whole = whole.sort_by([("prompt_id", "ascending"), ("sample", "ascending")]).combine_chunks()
        schema.validate(whole, COMPLETIONS, f"the completions just drawn for {part}")
        seconds, loading = self._engine.spent()
        report = _report(part, prompts, new, drawn, whole) | {
            "seconds": seconds,  # of the engine since the actor's report before,
            "loading": loading,  # its start among them
            "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,  # of the host, so far
        }
        reports = reports_of(job.out)
        reports.mkdir(exist_ok=True)
        (reports / f"{part}.json").write_text(json.dumps(report))
        schema.write_part(whole, job.out / part)
        digests.note(job.out / part, job.out)
        attempts.forget()
        return pa.Table.from_pylist([report])

    def _drawn(self, prompts: pa.Table, attempts: Attempts, part: str) -> pa.Table:
        def drawn(rows: pa.Table) -> pa.Table:
            asked = list(zip(rows["prompt_id"].to_pylist(), rows["prompt_ids"].to_pylist(), strict=True))
            return _table(rows, self._engine.generate(asked) if asked else [], self.job.model)

        self._engine.start()  # by itself: no part is to blame where it fails
        with self._company.joined(alone=not attempts.clean):
            found = computed(prompts, drawn, attempts, part, "cluster.sample")
        failed = found.poisonous
        for name in _DRAWN:
            told = {"error": found.errors, "model": [self.job.model] * len(found.errors)}
            values = told.get(name, [None] * len(found.errors))
            failed = failed.append_column(COMPLETIONS.field(name), pa.array(values, COMPLETIONS.field(name).type))
        return pa.concat_tables([found.values, failed])


def _table(prompts: pa.Table, made: list[list[Completion]], model: int) -> pa.Table:
    """COMPLETIONS, those of a prompt together. Raises ValueError where the engine gave no numbers."""
    flat = [(row, number, each) for row, several in enumerate(made) for number, each in enumerate(several)]
    for row, _, each in flat:
        if len(each.token_logps) != len(each.ids) or not np.isfinite(each.token_logps).all():
            raise ValueError(
                f"the engine gave {len(each.token_logps)} log-probs for {len(each.ids)} tokens, or some that are not "
                f"finite, for prompt {prompts['prompt_id'][row]}"
            )
    columns: dict[str, list[Any]] = {
        "error": [None] * len(flat),
        "model": [model] * len(flat),
        "sample": [number for _, number, _ in flat],
        "finish": [each.finish for *_, each in flat],
        **{name: [getattr(each, name) for *_, each in flat] for name in ("text", "ids", "token_logps")},
    }
    table = prompts.take(pa.array([row for row, *_ in flat], pa.int64()))
    for name in _DRAWN:
        field = COMPLETIONS.field(name)
        table = table.append_column(field, pa.array(columns[name], field.type))
    return table


def _placed(known: pa.Table, prompts: pa.Table) -> pa.Table:
    """With source and row of the prompts as they stand here."""
    rows = prompts.take(pc.index_in(known["prompt_id"], prompts["prompt_id"].combine_chunks()))
    for name in ("source", "source_row"):
        at = known.column_names.index(name)
        known = known.set_column(at, known.schema.field(name), rows[name])
    return known


def _report(part: str, prompts: pa.Table, new: pa.Table, drawn: pa.Table, whole: pa.Table) -> dict[str, Any]:
    return {
        "part": part,
        "actor": f"{os.uname().nodename}:{os.getpid()}",
        "prompts": len(prompts),
        "asked": len(new),
        "completions": len(drawn),
        "drawn": pc.sum(pc.list_value_length(drawn["ids"]), min_count=0).as_py() or 0,  # tokens
        "unscored": len(whole) - whole["error"].null_count,
    }
