"""One of the two models as it writes: prompts in, completions out. What the reference has written before is taken over:
the policies of a sweep stand beside one reference, which writes the same to the same prompts.
"""

import logging
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import schema
from stages.engine.generation import Generator
from stages.engine.shared import SharedGenerator
from stages.errors import ContractError
from stages.evaluate.job import PROMPTS_A_PART, Job

_log = logging.getLogger("raydpo")

WRITTEN = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("split", pa.string()),
        ("prompt", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("stopped", pa.bool_()),
    ]
)
_TAKEN_OVER = b"taken_over"  # in the metadata of a part


class Writer:
    """Its state is an engine; its effect is a file a call: what the model `who` writes to the prompts of a part. It may
    be called for two parts at a time: so the engine is full until the last one's end.
    """

    def __init__(self, job: Job, who: str):
        self.job, self.who = job, who
        self._engine = SharedGenerator(self._generator)

    @cached_property
    def _prompts(self) -> pa.Table:
        return pq.read_table(self.job.prompts)

    def _generator(self) -> Generator:
        """Made at the first call: an error of __init__ would reach the driver as the death of an actor."""
        config, sampling = self.job.config, self.job.config.sampling
        assert sampling is not None
        longest = max(map(len, self._prompts["ids"].to_pylist()))
        return Generator(self.job.model(self.who), config.dtype, longest, sampling, self.job.resources)

    def __call__(self, number: int) -> dict[str, int]:
        """Write part `number`; how many completions and tokens that were."""
        prompts = _prompts_of(self._prompts, number)
        known = _known(self.job, prompts) if self.who == "reference" else []
        met = {row["prompt_id"] for row in known}
        new = [prompt for prompt in prompts if prompt["prompt_id"] not in met]
        made = self._engine.generate([(prompt["prompt_id"], prompt["ids"]) for prompt in new])
        tokenizer = self._engine.tokenizer
        rows = [
            {
                "prompt_id": prompt["prompt_id"],
                "sample": sample,
                "prompt": tokenizer.decode(prompt["ids"], skip_special_tokens=True),
                "text": completion.text,
                "ids": completion.ids,
                "stopped": completion.finish == "stop",
            }
            for prompt, completions in zip(new, made, strict=True)
            for sample, completion in enumerate(completions)
        ]
        _write(self.job, self.who, number, prompts, known, rows)
        return {"completions": len(rows), "tokens": sum(len(row["ids"]) for row in rows)}


def take_over(job: Job, number: int) -> None:
    """Write part `number` of the reference where all of it is known: then no engine is started for it."""
    if job.known and not job.written("reference", number).exists():
        prompts = _prompts_of(pq.read_table(job.prompts), number)
        known = _known(job, prompts)
        if len({row["prompt_id"] for row in known}) == len(prompts):
            _write(job, "reference", number, prompts, known, [])


def num_taken_over(job: Job, number: int) -> int:
    """How many of the reference's completions in part `number` are another evaluation's."""
    return int((pq.read_schema(job.written("reference", number)).metadata or {}).get(_TAKEN_OVER, 0))


def _prompts_of(prompts: pa.Table, number: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = prompts.slice(number * PROMPTS_A_PART, PROMPTS_A_PART).to_pylist()
    return rows


def _known(job: Job, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the reference has written to some of them, all samples of a prompt. A damaged file is passed over."""
    found: list[dict[str, Any]] = []
    missing = {prompt["prompt_id"] for prompt in prompts}
    for evaluation in job.known:
        if not missing:
            break
        try:
            table = evaluation.of_reference()
        except ContractError as error:
            _log.warning("not taken over: %s", error)
            continue
        rows = table.filter(pc.is_in(table["prompt_id"], pa.array(sorted(missing)))).to_pylist()
        found += rows
        missing -= {row["prompt_id"] for row in rows}
    return found


def _write(
    job: Job,
    who: str,
    number: int,
    prompts: list[dict[str, Any]],
    known: list[dict[str, Any]],
    new: list[dict[str, Any]],
) -> None:
    """A part, in the order of its prompts, whoever wrote it."""
    place = {prompt["prompt_id"]: at for at, prompt in enumerate(prompts)}
    rows = [
        row | {"split": prompt["split"], "prompt_ids": prompt["ids"]}
        for row in sorted([*known, *new], key=lambda row: (place[row["prompt_id"]], row["sample"]))
        for prompt in (prompts[place[row["prompt_id"]]],)
    ]
    table = pa.Table.from_pylist(rows, schema=WRITTEN)
    schema.write_part(table.replace_schema_metadata({_TAKEN_OVER: str(len(known))}), job.written(who, number))
