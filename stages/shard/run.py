"""The shard stage: read, parse, tokenize, drop with a reason, and write parts that follow from the pairs alone."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from stages import schema
from stages.errors import ContractError, RecipeError, out_of_ray
from stages.progress import Progress, Silent
from stages.shard.config import Shape, ShardConfig, ShardResources
from stages.shard.part import SCHEMAS, merge_rejects, write_empty_parts, write_part
from stages.shard.report.contamination import evaluations
from stages.shard.report.report import report_of
from stages.shard.source import Slice, slices
from stages.shard.tokenization import (
    Completion,
    Pair,
    Rejected,
    hash_of,
    load_tokenizer,
    tokenize,
    tokenize_labelled,
)
from stages.shard.triple import Labelled, Malformed, Triple, detect_shape, parse

# A row after tokenization and before its part is written: a pair, or a reject with a reason.
_TOKENIZED = {
    rows: pa.schema(
        [*made, ("part", pa.int64()), ("cut_prompt", pa.bool_()), ("cut_completions", pa.int64())]
        + [schema.REJECTS.field(name) for name in ("reason", "detail", "row")]
    )
    for rows, made in SCHEMAS.items()
}


def shard(
    config: ShardConfig, *, out: Path, resources: ShardResources, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the PreferencePairs of `config` under `out` and return the facts of the work.

    Raises RecipeError for a source or tokenizer that cannot serve, ContractError when too many rows are dropped.
    """
    progress = progress or Silent()
    progress.start(config.num_parts, 0, "parts")
    work = slices(config, resources.rows_per_task)
    shape, of_messages = _shape(config, work)
    rows = (
        ray.data.from_items([piece.as_row() for piece in work], override_num_blocks=len(work))
        .map_batches(_read, batch_size=1, batch_format="pyarrow", fn_kwargs={"rows_per_table": resources.rows_per_task})
        .map_batches(
            _tokenize,
            batch_size=resources.rows_per_task,
            batch_format="pyarrow",
            fn_kwargs={"config": config, "shape": shape, "of_messages": of_messages},
        )
        .groupby("part", num_partitions=config.num_parts)
        .map_groups(write_part, batch_format="pyarrow", fn_kwargs={"out": str(out), "config": config})
    )
    facts: Counter[str] = Counter()
    longest = written = 0
    with out_of_ray():
        for part in rows.iter_rows():
            written += 1
            longest = max(longest, part["longest"])
            facts.update(json.loads(part["facts"]))
            progress.advance(written)
    write_empty_parts(config, out)
    merge_rejects(out)
    dropped = {key.removeprefix("dropped/"): n for key, n in sorted(facts.items()) if key.startswith("dropped/")}
    _check_dropped(config, facts, dropped, out)
    counts = {key: facts[key] for key in ("rows", "pairs", "train", "eval", "tokens", "cut_prompts", "cut_completions")}
    if config.rows == "labelled":
        counts |= {"labelled": True, "desirable": facts["desirable"]}
    return counts | {"longest": longest, "dropped": dropped, "shape": shape, "report": report_of(out)}


def _shape(config: ShardConfig, work: list[Slice]) -> tuple[Shape, bool]:
    """Told from the first row; and whether completions are lists of messages, for a chat template to write."""
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
    completion = row[config.columns.completion if shape == "labelled" else config.columns.chosen]
    return shape, isinstance(completion, list)


def _read(piece: pa.Table, rows_per_table: int) -> Iterator[pa.Table]:
    yield from Slice(**piece.to_pylist()[0]).tables(rows_per_table)


@lru_cache(maxsize=1)  # once a worker process; the driver, which has no use for it, would take seconds to import it
def _tokenizer(config: ShardConfig, of_messages: bool) -> Any:
    tokenizer = load_tokenizer(config.tokenizer)
    if of_messages and tokenizer.chat_template is None:
        raise RecipeError(
            f"{config.source} holds lists of messages, and the tokenizer of {config.tokenizer} has no chat template to "
            "write them with. Use the tokenizer of a chat model, or triples of plain strings"
        )
    return tokenizer


def _tokenize(raw: pa.Table, config: ShardConfig, shape: Shape, of_messages: bool) -> pa.Table:
    tokenizer = _tokenizer(config, of_messages)
    rows = [row for each in raw.to_pylist() for row in _tokenize_row(each, tokenizer, config, shape)]
    return pa.Table.from_pylist(rows, schema=_TOKENIZED[config.rows])


def _tokenize_row(raw: dict[str, Any], tokenizer: Any, config: ShardConfig, shape: Shape) -> Iterator[dict[str, Any]]:
    origin = {"source": raw["source"], "source_row": raw["source_row"], "row": raw["row"]}
    rejected = origin | {"part": raw["source_row"] % config.num_parts}
    try:
        parsed = parse(raw["row"], shape, config.columns)
    except Malformed as error:
        yield rejected | {"reason": "malformed", "detail": str(error)}
        return
    if config.decontaminate and (detail := evaluations(config.decontaminate).find(parsed)):
        yield rejected | {"reason": "contaminated", "detail": detail}
        return
    rows: Sequence[Triple | Labelled] = [parsed]
    if isinstance(parsed, Triple) and config.rows == "labelled" and parsed.chosen != parsed.rejected:
        rows = parsed.unrolled()
    for row in rows:
        try:
            yield origin | _made(row, tokenizer, config)
        except Rejected as error:
            yield rejected | {"reason": error.reason, "detail": error.detail}


def _made(row: Triple | Labelled, tokenizer: Any, config: ShardConfig) -> dict[str, Any]:
    """The columns of one pair or labelled completion, but for its `mismatched_ids`. Raises Rejected."""
    made: Pair | Completion
    own: dict[str, Any]
    if isinstance(row, Triple):
        made = tokenize(row, tokenizer, config)
        own = {"chosen_ids": made.chosen_ids, "rejected_ids": made.rejected_ids}
        own |= {"pair_id": made.pair_id, "margin": row.margin}
    else:
        made = tokenize_labelled(row, tokenizer, config)
        own = {"pair_id": made.row_id, "completion_ids": made.completion_ids, "label": made.label}
    return own | {
        "split": split_of(made.prompt_ids, config.eval_fraction),
        "prompt_ids": made.prompt_ids,
        "part": int(own["pair_id"][:8], 16) % config.num_parts,
        "cut_prompt": made.cut_prompt,
        "cut_completions": made.cut_completions,
    }


def split_of(prompt_ids: list[int], eval_fraction: float) -> str:
    """Held out or not, by the prompt alone: pairs that share a prompt are on the same side."""
    prompt_hash = int(hash_of(prompt_ids, [], [])[:8], 16)
    return "eval" if prompt_hash < eval_fraction * 2**32 else "train"


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
