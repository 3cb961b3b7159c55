"""The shard stage: read, parse, tokenize, drop with a reason, and write parts that follow from the pairs alone."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from stages import schema
from stages.errors import ContractError, RecipeError, out_of_ray
from stages.progress import Progress, Silent
from stages.shard.config import Shape, ShardConfig, ShardResources, Source
from stages.shard.held_out import are_among, prompt_hash, prompts_of
from stages.shard.part import SCHEMAS, merge_rejects, write_empty_parts, write_part
from stages.shard.source import Slice
from stages.shard.survey import sample, survey
from stages.shard.tokenization import (
    Completion,
    Pair,
    Rejected,
    load_tokenizer,
    tokenize,
    tokenize_labelled,
)
from stages.shard.triple import Labelled, Malformed, Triple, detect_shape, parse

FEW = 4  # slices that the driver looks into by itself

# A row after tokenization and before its part is written: a pair, or a reject with a reason.
_TOKENIZED = {
    rows: pa.schema(
        [
            *made,
            ("part", pa.int64()),
            ("which", pa.int32()),
            ("cut_prompt", pa.bool_()),
            ("cut_completions", pa.int64()),
        ]
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
    with out_of_ray():
        work = survey(config, resources.rows_per_task, _on_workers)
    config = config if config.num_parts != "auto" else config.model_copy(update={"num_parts": work.num_parts})
    progress.start(config.parts, 0, "parts")
    told = [_shape(config, source) for source in config.all_sources]
    shapes = [shape for shape, _ in told]
    how: dict[str, Any] = {"config": config, "shapes": shapes, "of_messages": any(each for _, each in told)}

    def tokenized(pieces: list[Slice], held_out: ray.ObjectRef | None) -> ray.data.Dataset:
        return (
            ray.data.from_items([piece.as_row() for piece in pieces], override_num_blocks=len(pieces))
            .map_batches(
                _read, batch_size=1, batch_format="pyarrow", fn_kwargs={"rows_per_table": resources.rows_per_task}
            )
            .map_batches(
                _tokenize,
                batch_size=resources.rows_per_task,
                batch_format="pyarrow",
                fn_kwargs=how | {"held_out": [held_out]},
            )
        )

    held_out = None
    if held_out_pieces := [piece for piece in work.slices if piece.which >= config.num_trained]:
        with out_of_ray():
            held_out = ray.put(prompts_of(tokenized(held_out_pieces, None)))
    rows = (
        tokenized(work.slices, held_out)
        .groupby("part", num_partitions=config.parts)
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
    counts |= {key: facts[key] for key in (f"eval/{each.label}" for each in config.eval)}
    if config.rows == "labelled":
        counts |= {"labelled": True, "desirable": facts["desirable"]}
    return counts | {
        "longest": longest,
        "dropped": dropped,
        "shape": ", ".join(dict.fromkeys(shapes)),
        "num_parts": config.parts,
        "sources": work.by_source(config, facts),
        "notices": work.notices,
    }


def _on_workers(function: Callable[[Slice], Any], pieces: Sequence[Slice]) -> list[Any]:
    """A few slices cost less here than their way to workers."""
    if len(pieces) <= FEW:
        return list(map(function, pieces))
    task = ray.remote(lambda piece: function(piece))
    return ray.get([task.remote(piece) for piece in pieces])


def _shape(config: ShardConfig, source: Source) -> tuple[Shape, bool]:
    """Told from the first row; and whether completions are lists of messages, for a chat template to write."""
    ((_, _, first),) = sample(source, 1)
    try:
        row = json.loads(first)
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"the first row of {source.source} is not JSON: {error}. One JSON object a line is read"
        ) from error
    if not isinstance(row, dict):
        raise RecipeError(f"the first row of {source.source} is a {type(row).__name__}, not a JSON object with columns")
    detected = detect_shape(row, source.columns, source.source)
    shape = detected if source.shape == "auto" else source.shape
    if shape == "labelled" and config.rows == "pairs":
        raise RecipeError(
            f"{source.source} holds labelled completions, of which no pairs can be made. Set shard.rows: labelled, and "
            "train.loss to one that takes them, as kto does"
        )
    completion = row[source.columns.completion if shape == "labelled" else source.columns.chosen]
    return shape, isinstance(completion, list)


def _read(piece: pa.Table, rows_per_table: int) -> Iterator[pa.Table]:
    yield from Slice(**piece.to_pylist()[0]).tables(rows_per_table)


@lru_cache(maxsize=1)  # once a worker process; the driver, which has no use for it, would take seconds to import it
def _tokenizer(config: ShardConfig, of_messages: bool) -> Any:
    tokenizer = load_tokenizer(config.tokenizer)
    if of_messages and tokenizer.chat_template is None:
        raise RecipeError(
            f"{config.named} holds lists of messages, and the tokenizer of {config.tokenizer} has no chat template to "
            "write them with. Use the tokenizer of a chat model, or triples of plain strings"
        )
    return tokenizer


def _tokenize(
    raw: pa.Table, config: ShardConfig, shapes: list[Shape], of_messages: bool, held_out: list[ray.ObjectRef | None]
) -> pa.Table:
    tokenizer, sources = _tokenizer(config, of_messages), config.all_sources
    rows: list[dict[str, Any]] = []
    for each in raw.to_pylist():
        which = each["which"]
        rows += _tokenize_row(each, tokenizer, config, sources[which], shapes[which])
    if held_out[0] is not None:
        _set_held_out_aside(rows, config, ray.get(held_out[0]))
    return pa.Table.from_pylist(rows, schema=_TOKENIZED[config.rows])


def _set_held_out_aside(rows: list[dict[str, Any]], config: ShardConfig, held_out: np.ndarray) -> None:
    """No prompt of a held-out set is trained on."""
    trained = [row for row in rows if row.get("split") == "train"]
    found = are_among([row["prompt_ids"] for row in trained], held_out)
    for row, is_held_out in zip(trained, found, strict=True):
        if is_held_out:
            origin = {name: row[name] for name in ("source", "source_row", "row", "which")}
            row.clear()
            row |= origin | {
                "part": origin["source_row"] % config.parts,
                "reason": "held_out",
                "detail": "its prompt is one of a held-out set (shard.eval)",
            }


def _tokenize_row(
    raw: dict[str, Any], tokenizer: Any, config: ShardConfig, source: Source, shape: Shape
) -> Iterator[dict[str, Any]]:
    origin = {name: raw[name] for name in ("source", "source_row", "row", "which")}
    rejected = origin | {"part": raw["source_row"] % config.parts}
    try:
        parsed = parse(raw["row"], shape, source.columns)
    except Malformed as error:
        yield rejected | {"reason": "malformed", "detail": str(error)}
        return
    rows: Sequence[Triple | Labelled] = [replace(parsed, weight=parsed.weight * raw["weight"])]
    if isinstance(parsed, Triple) and config.rows == "labelled" and parsed.chosen != parsed.rejected:
        rows = rows[0].unrolled()  # type: ignore[union-attr]
    held_out = f"eval/{source.label}" if raw["which"] >= config.num_trained else None
    for row in rows:
        try:
            made = _made(row, tokenizer, config)
        except Rejected as error:
            yield rejected | {"reason": error.reason, "detail": error.detail}
        else:
            yield origin | made | ({"split": held_out} if held_out else {})


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
        "part": int(own["pair_id"][:8], 16) % config.parts,
        "cut_prompt": made.cut_prompt,
        "cut_completions": made.cut_completions,
    }


def split_of(prompt_ids: list[int], eval_fraction: float) -> str:
    """Held out or not, by the prompt alone: pairs that share a prompt are on the same side."""
    start = int.from_bytes(prompt_hash(prompt_ids)[:4], "big")
    return "eval" if start < eval_fraction * 2**32 else "train"


def _check_dropped(config: ShardConfig, facts: Counter[str], dropped: dict[str, int], out: Path) -> None:
    if not facts["pairs"] or sum(dropped.values()) > config.max_dropped_fraction * facts["rows"]:
        counts = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        example = pq.read_table(out / "rejects.parquet").slice(0, 1).to_pylist()[0]
        raise ContractError(
            f"{sum(dropped.values())} of {facts['rows']} rows of {config.named} make no pair ({counts}), more than "
            f"shard.max_dropped_fraction {config.max_dropped_fraction} allows. The first: row "
            f"{example['source_row']} of {example['source']}, {example['reason']}: {example['detail']}. "
            f"All stand with their reasons in {out / 'rejects.parquet'}. "
            "Mend the rows, or raise shard.max_dropped_fraction"
        )
