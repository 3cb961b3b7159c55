"""The shard stage: read, parse, tokenize, drop with a reason, and write parts that follow from the pairs alone."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from stages import schema
from stages.errors import ContractError, RecipeError, out_of_ray
from stages.progress import Progress, Silent
from stages.shard.config import Shape, ShardConfig, ShardResources
from stages.shard.mismatched import with_mismatched
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

_SCHEMAS = {"pairs": schema.PAIRS, "labelled": schema.LABELLED}
# A row after tokenization and before its part is written: a pair, or a reject with a reason.
_TOKENIZED = {
    rows: pa.schema(
        [*made, ("part", pa.int64()), ("cut_prompt", pa.bool_()), ("cut_completions", pa.int64())]
        + [schema.REJECTS.field(name) for name in ("reason", "detail", "row")]
    )
    for rows, made in _SCHEMAS.items()
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
    shape = _shape(config, work)
    rows = (
        ray.data.from_items([piece.as_row() for piece in work], override_num_blocks=len(work))
        .map_batches(_read, batch_size=1, batch_format="pyarrow", fn_kwargs={"rows_per_table": resources.rows_per_task})
        .map_batches(
            _tokenize,
            batch_size=resources.rows_per_task,
            batch_format="pyarrow",
            fn_kwargs={"config": config, "shape": shape},
        )
        .groupby("part", num_partitions=config.num_parts)
        .map_groups(_write_part, batch_format="pyarrow", fn_kwargs={"out": str(out), "config": config})
    )
    facts: Counter[str] = Counter()
    longest = written = 0
    with out_of_ray():
        for part in rows.iter_rows():
            written += 1
            longest = max(longest, part["longest"])
            facts.update(json.loads(part["facts"]))
            progress.advance(written)
    for index in range(config.num_parts):  # parts that no pair fell into are written too: all parts are always there
        if not (out / part_name(index)).exists():
            schema.write_part(_SCHEMAS[config.rows].empty_table(), out / part_name(index))
    _merge_rejects(out)
    dropped = {key.removeprefix("dropped/"): n for key, n in sorted(facts.items()) if key.startswith("dropped/")}
    _check_dropped(config, facts, dropped, out)
    counts = {key: facts[key] for key in ("rows", "pairs", "train", "eval", "tokens", "cut_prompts", "cut_completions")}
    if config.rows == "labelled":
        counts |= {"labelled": True, "desirable": facts["desirable"]}
    return counts | {"longest": longest, "dropped": dropped, "shape": shape}


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _shape(config: ShardConfig, work: list[Slice]) -> Shape:
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
    tokenizer = load_tokenizer(config.tokenizer)  # early, so that a wrong name fails here and not in a worker
    if isinstance(completion, list) and tokenizer.chat_template is None:
        raise RecipeError(
            f"{config.source} holds lists of messages, and the tokenizer of {config.tokenizer} has no chat template to "
            "write them with. Use the tokenizer of a chat model, or triples of plain strings"
        )
    return shape


def _read(piece: pa.Table, rows_per_table: int) -> Iterator[pa.Table]:
    yield from Slice(**piece.to_pylist()[0]).tables(rows_per_table)


_tokenizer = lru_cache(maxsize=1)(load_tokenizer)  # once a worker process


def _tokenize(raw: pa.Table, config: ShardConfig, shape: Shape) -> pa.Table:
    tokenizer = _tokenizer(config.tokenizer)
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


def _write_part(group: pa.Table, out: str, config: ShardConfig) -> pa.Table:
    """Sort, drop duplicates (the first in the source stays), write the part and its rejects; report in one row."""
    folder, index = Path(out), group["part"][0].as_py()
    group = group.sort_by([(name, "ascending") for name in ("pair_id", "source", "source_row")])
    is_pair = pc.is_valid(group["pair_id"])
    pairs, rejects = group.filter(is_pair), group.filter(pc.invert(is_pair))
    ids = pairs["pair_id"].to_pylist()
    first = [i == 0 or ids[i] != ids[i - 1] for i in range(len(ids))]
    repeated = pairs.filter(pa.array([not f for f in first], pa.bool_()))
    pairs = pairs.filter(pa.array(first, pa.bool_()))
    rejects = pa.concat_tables([rejects.select(schema.REJECTS.names), _as_duplicates(repeated)])

    made = _SCHEMAS[config.rows]
    if config.rows == "labelled":
        pairs = with_mismatched(pairs, config.max_length)
    schema.write_part(pairs.select(made.names).cast(made), folder / part_name(index))
    schema.write_part(rejects.cast(schema.REJECTS), _rejects_of(folder, index))
    prompt, first, second = (
        pc.list_value_length(pairs[f"{name}_ids"]).to_numpy() for name in ("prompt", *schema.sides(made.names))
    )
    facts = Counter(pairs["split"].to_pylist())
    facts.update({f"dropped/{reason}": n for reason, n in Counter(rejects["reason"].to_pylist()).items()})
    facts.update(
        rows=len(pairs) + len(rejects),
        pairs=len(pairs),
        tokens=int((2 * prompt + first + second).sum()),  # as scoring reads them: the prompt once a side
        cut_prompts=int(pc.sum(pairs["cut_prompt"]).as_py() or 0),
        cut_completions=int(pc.sum(pairs["cut_completions"]).as_py() or 0),
    )
    if config.rows == "labelled":
        facts["desirable"] = int(pc.sum(pairs["label"]).as_py() or 0)
    longest = int((prompt + np.maximum(first, second)).max(initial=0))
    return pa.table({"longest": [longest], "facts": [json.dumps(facts)]})


def _as_duplicates(repeated: pa.Table) -> pa.Table:
    detail = [f"the same tokens as an earlier row: pair_id {pair_id}" for pair_id in repeated["pair_id"].to_pylist()]
    return pa.table(
        {
            "source": repeated["source"],
            "source_row": repeated["source_row"],
            "reason": pa.array(["duplicate"] * len(repeated), pa.string()),
            "detail": pa.array(detail, pa.string()),
            "row": repeated["row"],
        }
    )


def _rejects_of(folder: Path, index: int) -> Path:
    return folder / ".rejects" / f"{index:05d}.parquet"


def _merge_rejects(out: Path) -> None:
    """One file for people, part by part, so that no process holds all rejects."""
    unfinished = out / ".rejects.parquet"
    with pq.ParquetWriter(unfinished, schema.REJECTS, compression="zstd") as writer:
        for path in sorted((out / ".rejects").glob("*.parquet")):
            table = pq.read_table(path)
            if len(table):
                writer.write_table(table)
    unfinished.rename(out / "rejects.parquet")


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
