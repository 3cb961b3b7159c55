"""Rows as they were read -> tokenized rows, and rows that were set aside with a reason; both as tables."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stages import schema
from stages.shard.config import Shape, ShardConfig, Source
from stages.shard.parts.held_out import prompt_hash
from stages.shard.report.contamination import evaluations
from stages.shard.tokenization import Completion, Pair, Tokenizer
from stages.shard.triple import Labelled, Rejected, Triple, read

# What is encoded at once. More gains nothing, and takes memory: 100 bytes a token.
_ROWS, _CHARACTERS = 500, 2_000_000
_LARGEST = float(np.finfo(np.float32).max)

SCHEMAS = {"pairs": schema.PAIRS, "labelled": schema.LABELLED}
_WHICH = pa.field("which", pa.int32())  # of the sources of the config
# A tokenized row on its way to its part: the columns of the part, and what only its facts or a reject need.
TOKENIZED = {
    rows: pa.schema(
        [
            *made,
            ("part", pa.int64()),
            _WHICH,
            ("cut_prompt", pa.bool_()),
            ("cut_completions", pa.int64()),
            ("control_tokens", pa.bool_()),
            ("unended", pa.int64()),
            schema.REJECTS.field("row"),
        ]
    )
    for rows, made in SCHEMAS.items()
}
SET_ASIDE = schema.REJECTS.append(pa.field("part", pa.int64())).append(_WHICH)


class Raw(NamedTuple):
    source: str
    source_row: int
    row: str  # JSON
    which: int


class Origin(NamedTuple):
    """What all rows of a slice have in common."""

    source: Source
    shape: Shape
    held_out: bool


def batches(rows: Iterable[Raw]) -> Iterator[list[Raw]]:
    """So many rows, or so much text; a longer row by itself."""
    batch: list[Raw] = []
    characters = 0
    for row in rows:
        if batch and (len(batch) == _ROWS or characters + len(row.row) > _CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(row)
        characters += len(row.row)
    if batch:
        yield batch


def tokenized(
    batch: Sequence[Raw], origin: Origin, tokenizer: Tokenizer, config: ShardConfig, num_parts: int
) -> tuple[pa.Table, pa.Table]:
    """Tables of the schemas TOKENIZED and SET_ASIDE, in the order of the rows."""
    origins: list[Raw] = []
    rows: list[Triple | Labelled | Rejected] = []
    for raw in batch:
        found = _parsed(raw.row, origin, config)
        origins += [raw] * len(found)
        rows += found
    made = iter(tokenizer.tokenize([row for row in rows if not isinstance(row, Rejected)]))
    pairs, aside = [], []
    for raw, row in zip(origins, rows, strict=True):
        each = row if isinstance(row, Rejected) else next(made)
        if isinstance(each, Rejected):
            aside.append({**raw._asdict(), "reason": each.reason, "detail": each.detail})
            aside[-1]["part"] = raw.source_row % num_parts
        else:
            pairs.append((raw, row, each))
    return _table(pairs, origin, config, num_parts), pa.Table.from_pylist(aside, schema=SET_ASIDE)


def _parsed(text: str, origin: Origin, config: ShardConfig) -> list[Triple | Labelled | Rejected]:
    rows: list[Triple | Labelled | Rejected] = []
    for each in read(text, origin.shape, origin.source, config):
        if isinstance(each, Rejected):
            rows.append(each)
        elif config.decontaminate and (detail := evaluations(config.decontaminate).find(each)):
            rows.append(Rejected("contaminated", detail))
        else:
            rows.append(_weighted(each, origin.source.weight))
    return rows


def _weighted(row: Triple | Labelled, weight: float) -> Triple | Labelled | Rejected:
    """The row with its own weight times its source's; set aside where float32, in which it is trained, overflows."""
    made = replace(row, weight=row.weight * weight)
    for name in ("weight", "margin"):
        if (value := getattr(made, name, None)) is not None and value > _LARGEST:
            return Rejected(name, f"its {name} is {value:g}; training takes {_LARGEST:.3g} at most")
    return made


def _table(
    pairs: Sequence[tuple[Raw, Any, Pair | Completion]], origin: Origin, config: ShardConfig, num_parts: int
) -> pa.Table:
    """Columns are those of the row's origin, what is made here, and by their names what the pair or its triple has."""
    ids = [made.pair_id if isinstance(made, Pair) else made.row_id for _, _, made in pairs]
    columns: dict[str, list[Any]] = {name: [getattr(raw, name) for raw, _, _ in pairs] for name in Raw._fields}
    columns["pair_id"] = ids
    columns["part"] = [int(each[:8], 16) % num_parts for each in ids]
    columns["split"] = [
        f"eval/{origin.source.label}" if origin.held_out else split_of(made.prompt_ids, config.eval_fraction)
        for _, _, made in pairs
    ]
    arrays = []
    for field in TOKENIZED[config.rows]:
        values = columns.get(field.name)
        if values is None:
            values = [getattr(made, field.name, getattr(row, field.name, None)) for _, row, made in pairs]
        arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=TOKENIZED[config.rows])


def split_of(prompt_ids: Sequence[int], eval_fraction: float) -> str:
    """Held out or not, by the prompt alone: pairs that share a prompt are on the same side."""
    start = int.from_bytes(prompt_hash(prompt_ids)[:4], "big")
    return "eval" if start < eval_fraction * 2**32 else "train"
