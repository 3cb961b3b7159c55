"""Column names and Parquet schemas of every artifact. The names are TRL's where TRL has one."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import ContractError

PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),  # 32 hex digits, a hash of the three id lists; unique in the artifact
        ("split", pa.string()),  # "train" or "eval"; follows from the prompt, so no prompt is on both sides
        ("prompt_ids", pa.list_(pa.int32())),  # never empty: the first completion token needs a context
        ("chosen_ids", pa.list_(pa.int32())),  # ends with the end token, unless it was cut at max_length
        ("rejected_ids", pa.list_(pa.int32())),  # likewise; differs from chosen_ids
        ("source", pa.string()),  # file or dataset the triple was read from
        ("source_row", pa.int64()),  # its row there, counted from 0
    ]
)

LOGPROBS = pa.schema(
    [
        ("pair_id", pa.string()),  # equal to row i of the pairs' part of the same name
        ("ref_chosen_logps", pa.float64()),  # sum over completion tokens, nats
        ("ref_rejected_logps", pa.float64()),
        ("ref_chosen_token_logps", pa.list_(pa.float32())),  # log p(ids[t] | prompt, ids[<t]), nats
        ("ref_rejected_token_logps", pa.list_(pa.float32())),
    ]
)

REJECTS = pa.schema(
    [
        ("source", pa.string()),
        ("source_row", pa.int64()),
        ("reason", pa.string()),  # empty | equal | too_long | duplicate | malformed
        ("detail", pa.string()),  # what exactly was wrong with this row
        ("row", pa.large_string()),  # the triple as it was read, JSON
    ]
)


def validate(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """Return `table` if its columns are exactly those of `schema`, without nulls; else raise ContractError."""
    if not table.schema.equals(schema):
        raise ContractError(f"{where} has the columns [{_columns(table.schema)}], not [{_columns(schema)}]")
    for name in schema.names:
        if table[name].null_count:
            raise ContractError(f"{where} has {table[name].null_count} nulls in column {name}; none is allowed")
    return table


def logprobs_table(pair_ids: pa.ChunkedArray, token_logps: Sequence[Any]) -> pa.Table:
    """Per-token log-probs of 2B completions, in the order chosen, rejected, chosen, .. -> B rows of LOGPROBS."""
    sums = [float(np.sum(values, dtype=np.float64)) for values in token_logps]
    return pa.table([pair_ids, sums[0::2], sums[1::2], token_logps[0::2], token_logps[1::2]], schema=LOGPROBS)


def write_part(table: pa.Table, path: Path) -> None:
    """Write under a temporary name, then rename: a part that exists is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    pq.write_table(table, unfinished, compression="zstd", write_page_checksum=True)
    unfinished.rename(path)


def read_part(path: Path, schema: pa.Schema, remedy: str) -> pa.Table:
    """Read a whole part and check its schema; `remedy` says what to do where it is damaged."""
    try:
        table = pq.read_table(path, partitioning=None, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ContractError(f"{path} cannot be read as Parquet: {error}. {remedy}") from error
    return validate(table, schema, str(path))


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
