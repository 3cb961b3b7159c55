"""Column names and Parquet schemas of every artifact. The names are TRL's where TRL has one."""

import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import spans
from stages.errors import ContractError
from stages.storage import folders

PAIRS = pa.schema(
    [
        # 32 hex digits, a hash of the three id lists, and of the trained spans where they are not all; unique
        ("pair_id", pa.string()),
        ("split", pa.string()),  # "train", "eval", or "eval/<name>" of a named held-out set; no prompt is on both sides
        ("prompt_ids", pa.list_(pa.int32())),  # never empty: the first completion token needs a context
        (
            "chosen_ids",
            pa.list_(pa.int32()),
        ),  # ends with the end token, unless it was cut at max_length or by max_tokens
        ("rejected_ids", pa.list_(pa.int32())),  # likewise; differs from chosen_ids
        ("chosen_trained", pa.list_(pa.int32())),  # spans of the ids that are trained (spans.py); [0, n] is all of them
        ("rejected_trained", pa.list_(pa.int32())),
        ("weight", pa.float32()),  # of the pair in the loss
        ("margin", pa.float64()),  # how much better chosen is, as the triple says; null where it says nothing
        ("source", pa.string()),  # file or dataset the triple was read from
        ("source_row", pa.int64()),  # its row there, counted from 0
    ]
)

# A labelled completion, and for the KL term of KTO another prompt's completion after this prompt: together a pair too.
LABELLED = pa.schema(
    [
        # 16 hex digits of prompt, completion and label, 16 of prompt and mismatched, with their spans as in PAIRS
        ("pair_id", pa.string()),
        ("split", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("mismatched_ids", pa.list_(pa.int32())),  # of the next row of the part that has another prompt
        ("completion_trained", pa.list_(pa.int32())),  # spans, as in PAIRS
        ("mismatched_trained", pa.list_(pa.int32())),
        ("weight", pa.float32()),
        ("label", pa.bool_()),  # true: desirable
        ("source", pa.string()),
        ("source_row", pa.int64()),
    ]
)

PAIR_SIDES = ("chosen", "rejected")
LABELLED_SIDES = ("completion", "mismatched")


def sides(columns: Iterable[str]) -> tuple[str, str]:
    """Names of the two completions of a pair, in order, from the columns of its table or row."""
    labelled = any(name.removeprefix("ref_").split("_")[0] == "completion" for name in columns)
    return LABELLED_SIDES if labelled else PAIR_SIDES


def _logprobs(first: str, second: str) -> pa.Schema:
    return pa.schema(
        [
            ("pair_id", pa.string()),  # equal to row i of the pairs' part of the same name
            ("error", pa.string()),  # null; else why this pair could not be scored, and then what follows is null
            (f"ref_{first}_logps", pa.float64()),  # sum over the completion's trained tokens, nats
            (f"ref_{second}_logps", pa.float64()),
            # Of each trained token t, in order: log p(ids[t] | prompt, ids[<t]), nats
            (f"ref_{first}_token_logps", pa.list_(pa.float32())),
            (f"ref_{second}_token_logps", pa.list_(pa.float32())),
        ]
    )


LOGPROBS = _logprobs(*PAIR_SIDES)
LABELLED_LOGPROBS = _logprobs(*LABELLED_SIDES)

REJECTS = pa.schema(
    [
        ("source", pa.string()),
        ("source_row", pa.int64()),
        ("reason", pa.string()),  # empty | equal | too_long | duplicate | malformed | nothing_trained
        ("detail", pa.string()),  # what exactly was wrong with this row
        ("row", pa.large_string()),  # the triple as it was read, JSON
    ]
)


UNSCORED = pa.schema(
    [
        ("pair_id", pa.string()),
        ("part", pa.string()),  # the file it stands in
        ("error", pa.string()),  # as in LOGPROBS
    ]
)


_MAY_BE_NULL = {"error", "margin"}
_REPEATED = {"split", "source", "reason", "error", "part"}  # columns of few different values


def validate(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """Return `table` if its columns are exactly those of `schema`, without nulls; else raise ContractError.

    Rows that have an `error` may, and shall, have nulls. Spans of trained tokens lie in their completions, and no
    weight is negative.
    """
    if not table.schema.equals(schema):
        raise ContractError(f"{where} has the columns [{_columns(table.schema)}], not [{_columns(schema)}]")
    whole = table.filter(pc.is_null(table["error"])) if "error" in schema.names else table
    for name in schema.names:
        if name not in _MAY_BE_NULL and whole[name].null_count:
            raise ContractError(f"{where} has {whole[name].null_count} nulls in column {name}; none is allowed")
    for name in schema.names:
        if name.endswith("_trained"):
            lengths = pc.list_value_length(table[name.replace("_trained", "_ids")]).to_numpy()
            if problem := spans.problem(table[name], lengths):
                raise ContractError(f"{where}, {name}: {problem}")
    if "weight" in schema.names:
        bad = table.filter(pc.invert(pc.and_(pc.is_finite(table["weight"]), pc.greater_equal(table["weight"], 0.0))))
        if len(bad):
            raise ContractError(f"{where} has the weight {bad['weight'][0]} for pair {bad['pair_id'][0]}")
    return table


def logprobs_table(pairs: pa.Table, token_logps: Sequence[Any]) -> pa.Table:
    """Log-probs of 2B completions, a trained token each, of B pairs (PAIRS or LABELLED) -> B rows, some with an error.

    `token_logps` are in the order chosen, rejected, chosen, ..; None where an engine gave nothing.
    """
    both = sides(pairs.column_names)
    lengths = [spans.counts(pairs[f"{side}_trained"]) for side in both]
    rows = []
    for i, pair_id in enumerate(pairs["pair_id"].to_pylist()):
        row: dict[str, Any] = {"pair_id": pair_id, "error": None}
        for side, values, length in zip(both, token_logps[2 * i : 2 * i + 2], lengths, strict=True):
            if problem := _problem(values, length[i]):
                row = {"pair_id": pair_id, "error": f"{side}: {problem}"}
                break
            row[f"ref_{side}_logps"] = float(np.sum(values, dtype=np.float64))
            row[f"ref_{side}_token_logps"] = values
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=logprobs_schema(pairs))


def logprobs_schema(pairs: pa.Table) -> pa.Schema:
    return LOGPROBS if sides(pairs.column_names) == PAIR_SIDES else LABELLED_LOGPROBS


def num_tokens(pairs: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of prompt, first and second completion of each pair [B]: as far as a model reads, the last trained token."""
    first, second = (spans.stops(pairs[f"{side}_trained"]) for side in sides(pairs.column_names))
    return pc.list_value_length(pairs["prompt_ids"]).to_numpy(), first, second


def unscored_table(pairs: pa.Table, errors: Sequence[str]) -> pa.Table:
    """Rows of log-probs for pairs that none could be had of."""
    rows = [
        {"pair_id": pair_id, "error": error}
        for pair_id, error in zip(pairs["pair_id"].to_pylist(), errors, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=logprobs_schema(pairs))


def _problem(values: Any, length: int) -> str | None:
    if values is None:
        return "the engine gave no log-probs"
    if len(values) != length:
        return f"the engine gave {len(values)} log-probs for {length} trained tokens"
    if not (finite := np.isfinite(values)).all():
        where = int(np.argmin(finite))
        return f"the log-prob of trained token {where} is {values[where]}"
    return None


def write_part(table: pa.Table, path: Path) -> None:
    """Write under a temporary name, then rename: a part that exists is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    pq.write_table(table, unfinished, compression="zstd", write_page_checksum=True, **_encodings(table.schema))
    unfinished.rename(path)


def _encodings(schema: pa.Schema) -> dict[str, list[str]]:
    """What measured smallest: log-probs a quarter smaller than by pyarrow's own choice, token ids a fifth."""
    splittable = (pa.types.is_floating, pa.types.is_integer)
    split = [field.name for field in schema if any(is_type(field.type) for is_type in splittable)]
    lists = [field for field in schema if pa.types.is_list(field.type)]
    split += [
        f"{each.name}.list.element" for each in lists if any(is_type(each.type.value_type) for is_type in splittable)
    ]
    return {"use_dictionary": [name for name in schema.names if name in _REPEATED], "use_byte_stream_split": split}


def read_part(path: Path, schemas: tuple[pa.Schema, ...], remedy: str) -> pa.Table:
    """Read a whole part that has one of `schemas`, and check it; `remedy` says what to do where it is damaged."""
    table = read_columns(path, None, remedy)
    fitting = next((schema for schema in schemas if schema.names == table.column_names), schemas[0])
    return validate(table, fitting, str(path))


def read_columns(path: Path, columns: list[str] | None, remedy: str) -> pa.Table:
    """Some columns of a part, or all; raises ContractError where it is damaged."""
    try:
        with folders.opened(path) as source:
            return pq.read_table(source, columns=columns, partitioning=None, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ContractError(f"{path} cannot be read as Parquet: {error}. {remedy}") from error


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
