"""What the policy writes, and what is made of it: columns and typed read handles of the artifacts before `shard`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages import schema
from stages.artifacts import Manifest, remedy
from stages.names import part_name

PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),  # 32 hex digits, a hash of the ids; unique
        ("prompt", pa.large_string()),  # JSON: a text, or a list of messages
        ("prompt_ids", pa.list_(pa.int32())),  # as `shard` makes them of the same prompt
        ("source", pa.string()),  # file or dataset it was read from
        ("source_row", pa.int64()),
    ]
)

COMPLETIONS = pa.schema(
    [
        *PROMPTS,
        ("model", pa.int32()),  # which of the recipe's
        ("error", pa.string()),  # null; else why nothing could be drawn for this prompt, and then what follows is null
        ("sample", pa.int32()),  # of the prompt by this model, from 0
        ("text", pa.large_string()),  # without special tokens and stop texts
        ("ids", pa.list_(pa.int32())),  # as drawn, with the token that ends them
        ("token_logps", pa.list_(pa.float32())),  # of each id, as the model has it at temperature 1, nats
        ("finish", pa.string()),  # stop: it ended by itself; length: it was cut
    ]
)

# As `shard` reads them: texts, or messages as JSON text.
TRIPLES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.large_string()),
        ("chosen", pa.large_string()),
        ("rejected", pa.large_string()),
        ("margin", pa.float64()),  # of the judge's scores, how much better chosen is; null where it compares
        ("chosen_model", pa.int32()),  # which of the models that drew them
        ("rejected_model", pa.int32()),
        ("chosen_finish", pa.string()),  # as in COMPLETIONS: what was cut is trained without an end token
        ("rejected_finish", pa.string()),
    ]
)

JUDGED_OUT = pa.schema(  # prompts that made no triple
    [
        ("prompt_id", pa.string()),
        ("reason", pa.string()),  # tie | few | fault
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Completions:
    """Output of `sample`: `part-NNNNN.parquet` (COMPLETIONS), those of the first model first; `rejects.parquet`
    (schema.REJECTS) has rows of the source that are no prompts, and prompts for which nothing could be drawn.
    """

    folder: Path

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.folder)

    @property
    def parts(self) -> list[str]:
        return [path.name for path in sorted(self.folder.glob("part-*.parquet"))]

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """For who asks once a part: a manifest is the longer the more parts there are."""
        return self.manifest.facts

    def read(self, part: str) -> pa.Table:
        return schema.read_part(self.folder / part, (COMPLETIONS,), remedy("sample"))

    def of_all_models(self, number: int) -> pa.Table:
        """The completions of part `number` of the prompts, prompt by prompt; without prompts that have none."""
        facts = self._facts
        tables = [self.read(part_name(number + model * facts["num_parts"])) for model in range(facts["num_models"])]
        whole = pa.concat_tables(tables)
        whole = whole.filter(pc.is_null(whole["error"]))
        return whole.sort_by([("prompt_id", "ascending"), ("model", "ascending"), ("sample", "ascending")])


@dataclass(frozen=True)
class Triples:
    """Output of `judge`: `part-NNNNN.parquet` (TRIPLES), `rejects-NNNNN.parquet` (JUDGED_OUT), and
    `answers-NNNNN.parquet`, what the judge said.
    """

    folder: Path

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.folder)

    @property
    def graded(self) -> bool:
        """Whether the judge gave scores, and triples have margins."""
        return bool(self.manifest.facts["graded"])

    @property
    def source(self) -> str:
        """As `shard` names it."""
        return f"{self.folder}/part-*.parquet"


def prompts_of(rows: pa.Table) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(prompt, its rows) of a table that is sorted by prompt_id, the prompt of PROMPTS decoded."""
    held: list[dict[str, Any]] = []
    for row in rows.to_pylist():
        if held and held[0]["prompt_id"] != row["prompt_id"]:
            yield _prompt(held[0]), held
            held = []
        held.append(row)
    if held:
        yield _prompt(held[0]), held


def _prompt(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_id": row["prompt_id"], "prompt": json.loads(row["prompt"])}
