"""A part of pairs as files: sorted, without duplicates, with its rejects beside it."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import digests, schema
from stages.shard.batch import SCHEMAS, SET_ASIDE, TOKENIZED
from stages.shard.config import ShardConfig
from stages.shard.fragment import Fragments, parts_of
from stages.shard.mismatched import with_mismatched

TextOf = Callable[[pa.Table], pa.Array]  # rows of a part as they were read


def write_cells(
    cells: Sequence[int],
    fragments: Sequence[Path],
    set_aside: Sequence[Path],
    out: Path,
    config: ShardConfig,
    num_parts: int,
) -> dict[str, int]:
    """Write all parts of some cells, the empty ones too. Returns the facts of them, `longest` the largest of all."""
    made = TOKENIZED[config.rows]
    tokenized, aside = Fragments(fragments, made), Fragments(set_aside, SET_ASIDE)
    facts: Counter[str] = Counter()
    longest = 0
    for cell in cells:
        # `row`, most of the bytes, is read of those alone that are set aside now.
        pairs = tokenized.read(cell, [name for name in made.names if name != "row"])
        pairs = pairs.sort_by([(name, "ascending") for name in ("part", "pair_id", "source", "source_row")])
        rejects = aside.read(cell, SET_ASIDE.names)
        rejects = rejects.sort_by([(name, "ascending") for name in ("part", "source", "source_row")])
        for part in parts_of(cell, num_parts):
            found = write_part(
                _of_part(pairs, part),
                _of_part(rejects, part).select(schema.REJECTS.names),
                out / part_name(part),
                config,
                lambda rows, cell=cell: tokenized.pick(cell, rows, "row"),  # type: ignore[misc]
            )
            longest = max(longest, found.pop("longest"))
            facts.update(found)
    return facts | {"longest": longest}


def write_part(pairs: pa.Table, rejects: pa.Table, path: Path, config: ShardConfig, text_of: TextOf) -> dict[str, int]:
    """Drop duplicates of sorted pairs (the first in the source stays), write the part and its rejects; the facts."""
    ids = pairs["pair_id"].to_numpy()
    first = np.append([True], ids[1:] != ids[:-1])[: len(ids)]
    rejects = pa.concat_tables([rejects, _as_duplicates(pairs.filter(pa.array(~first)), text_of)])
    pairs = pairs.filter(pa.array(first))

    made = SCHEMAS[config.rows]
    if config.rows == "labelled":
        pairs = with_mismatched(pairs, config.max_length)
    schema.write_part(pairs.select(made.names), path)
    digests.note(path, path.parent)
    if len(rejects):
        schema.write_part(rejects, _rejects_of(path))
    else:
        _rejects_of(path).unlink(missing_ok=True)
    prompt, one, other = (
        pc.list_value_length(pairs[f"{name}_ids"]).to_numpy() for name in ("prompt", *schema.sides(made.names))
    )
    facts = Counter(pairs["split"].to_pylist())
    facts.update({f"dropped/{reason}": n for reason, n in Counter(rejects["reason"].to_pylist()).items()})
    facts.update(
        rows=len(pairs) + len(rejects),
        pairs=len(pairs),
        tokens=int((2 * prompt + one + other).sum()),  # as scoring reads them: the prompt once a side
        cut_prompts=int(pc.sum(pairs["cut_prompt"]).as_py() or 0),
        cut_completions=int(pc.sum(pairs["cut_completions"]).as_py() or 0),
        longest=int((prompt + np.maximum(one, other)).max(initial=0)),
    )
    if config.rows == "labelled":
        facts["desirable"] = int(pc.sum(pairs["label"]).as_py() or 0)
    return facts


def merge_rejects(out: Path) -> None:
    """One file for people, part by part, so that no process holds all rejects."""
    unfinished = out / ".rejects.parquet"
    with pq.ParquetWriter(unfinished, schema.REJECTS, compression="zstd") as writer:
        for path in sorted((out / ".rejects").glob("part-*.parquet")):
            writer.write_table(pq.read_table(path))
    unfinished.rename(out / "rejects.parquet")


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _of_part(rows: pa.Table, part: int) -> pa.Table:
    """Of rows that are sorted by their part."""
    start, end = np.searchsorted(rows["part"].to_numpy(), [part, part + 1])
    return rows.slice(start, end - start)


def _as_duplicates(repeated: pa.Table, text_of: TextOf) -> pa.Table:
    detail = [f"the same tokens as an earlier row: pair_id {pair_id}" for pair_id in repeated["pair_id"].to_pylist()]
    return _rejects(repeated, "duplicate", detail, text_of)


def _rejects(rows: pa.Table, reason: str, detail: list[str], text_of: TextOf) -> pa.Table:
    return pa.table(
        {
            "source": rows["source"],
            "source_row": rows["source_row"],
            "reason": pa.array([reason] * len(rows), pa.string()),
            "detail": pa.array(detail, pa.string()),
            "row": text_of(rows),
        },
        schema=schema.REJECTS,
    )


def _rejects_of(part: Path) -> Path:
    return part.parent / ".rejects" / part.name
