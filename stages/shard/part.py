"""A part of pairs as files: sorted, without duplicates, with its rejects beside it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import schema
from stages.shard.config import ShardConfig
from stages.shard.mismatched import with_mismatched

SCHEMAS = {"pairs": schema.PAIRS, "labelled": schema.LABELLED}


def write_part(group: pa.Table, out: str, config: ShardConfig) -> pa.Table:
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

    made = SCHEMAS[config.rows]
    if config.rows == "labelled":
        pairs, lone = with_mismatched(pairs, config.max_length)
        rejects = pa.concat_tables([rejects, _without_other(lone)])
    written = schema.validate(pairs.select(made.names).cast(made), made, part_name(index))
    schema.write_part(written, folder / part_name(index))
    schema.write_part(rejects.cast(schema.REJECTS), _rejects_of(folder, index))
    prompt, one, other = schema.num_tokens(written)
    facts = Counter(pairs["split"].to_pylist())
    facts.update({f"dropped/{reason}": n for reason, n in Counter(rejects["reason"].to_pylist()).items()})
    facts.update(
        rows=len(pairs) + len(rejects),
        pairs=len(pairs),
        tokens=int((2 * prompt + one + other).sum()),  # as scoring reads them: the prompt once a side
        cut_prompts=int(pc.sum(pairs["cut_prompt"]).as_py() or 0),
        cut_completions=int(pc.sum(pairs["cut_completions"]).as_py() or 0),
    )
    if config.rows == "labelled":
        facts["desirable"] = int(pc.sum(pairs["label"]).as_py() or 0)
    longest = int((prompt + np.maximum(one, other)).max(initial=0))
    return pa.table({"longest": [longest], "facts": [json.dumps(facts)]})


def write_empty_parts(config: ShardConfig, out: Path) -> None:
    """Parts that no pair fell into: all parts are always there."""
    for index in range(config.num_parts):
        if not (out / part_name(index)).exists():
            schema.write_part(SCHEMAS[config.rows].empty_table(), out / part_name(index))


def merge_rejects(out: Path) -> None:
    """One file for people, part by part, so that no process holds all rejects."""
    unfinished = out / ".rejects.parquet"
    with pq.ParquetWriter(unfinished, schema.REJECTS, compression="zstd") as writer:
        for path in sorted((out / ".rejects").glob("*.parquet")):
            table = pq.read_table(path)
            if len(table):
                writer.write_table(table)
    unfinished.rename(out / "rejects.parquet")


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _as_duplicates(repeated: pa.Table) -> pa.Table:
    detail = [f"the same tokens as an earlier row: pair_id {pair_id}" for pair_id in repeated["pair_id"].to_pylist()]
    return _rejects(repeated, "duplicate", detail)


def _without_other(lone: pa.Table) -> pa.Table:
    said = "no completion of another prompt has a trained token in the tokens that this prompt leaves of max_length"
    return _rejects(lone, "nothing_trained", [said] * len(lone))


def _rejects(rows: pa.Table, reason: str, detail: list[str]) -> pa.Table:
    return pa.table(
        {
            "source": rows["source"],
            "source_row": rows["source_row"],
            "reason": pa.array([reason] * len(rows), pa.string()),
            "detail": pa.array(detail, pa.string()),
            "row": rows["row"],
        }
    )


def _rejects_of(folder: Path, index: int) -> Path:
    return folder / ".rejects" / f"{index:05d}.parquet"
