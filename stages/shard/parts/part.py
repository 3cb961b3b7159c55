"""A part of pairs as files: sorted, without duplicates, with its rejects beside it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import digests, schema
from stages.names import part_name
from stages.shard.batch import SCHEMAS, SET_ASIDE, TOKENIZED
from stages.shard.config import ShardConfig
from stages.shard.parts.fragment import Fragments, parts_of
from stages.shard.parts.held_out import are_among
from stages.shard.parts.mismatched import with_mismatched
from stages.shard.report.report import note_part

TextOf = Callable[[pa.Table], pa.Array]  # rows of a part as they were read


@dataclass(frozen=True)
class Making:
    """What all parts are made with."""

    config: ShardConfig
    num_parts: int
    out: Path
    held_out: np.ndarray  # prompts that no row which is trained on may have (held_out.py)


def write_cells(
    cells: Sequence[int], fragments: Sequence[Path], set_aside: Sequence[Path], making: Making
) -> dict[str, int]:
    """Write all parts of some cells, the empty ones too. Returns the facts of them, those of LARGEST of all."""
    made = TOKENIZED[making.config.rows]
    tokenized, aside = Fragments(fragments, made), Fragments(set_aside, SET_ASIDE)
    facts: Counter[str] = Counter()
    largest = dict.fromkeys(LARGEST, 0)
    for cell in cells:
        # `row`, most of the bytes, is read of those alone that are set aside now.
        pairs = tokenized.read(cell, [name for name in made.names if name != "row"])
        pairs = pairs.sort_by([(name, "ascending") for name in ("part", "pair_id", "source", "source_row")])
        rejects = aside.read(cell, SET_ASIDE.names)
        rejects = rejects.sort_by([(name, "ascending") for name in ("part", "source", "source_row")])
        for part in parts_of(cell, making.num_parts):
            found = write_part(
                _of_part(pairs, part),
                _of_part(rejects, part).select(_REJECTS.names),
                part,
                making,
                lambda rows, cell=cell: tokenized.pick(cell, rows, "row"),  # type: ignore[misc]
            )
            largest = {name: max(value, found.pop(name)) for name, value in largest.items()}
            facts.update(found)
    return facts | largest


LARGEST = ("longest", "largest_id")  # facts of which the largest counts; all others are added up
_REJECTS = schema.REJECTS.append(SET_ASIDE.field("which"))


def write_part(pairs: pa.Table, rejects: pa.Table, part: int, making: Making, text_of: TextOf) -> dict[str, int]:
    """Set aside duplicates of sorted pairs (the first in the source stays) and what is held out; write the part."""
    config, path, made = making.config, making.out / part_name(part), SCHEMAS[making.config.rows]
    aside = [rejects]

    def keep(good: np.ndarray, reason: str, detail: Callable[[pa.Table], list[str]]) -> pa.Table:
        bad = pairs.filter(pa.array(~good))
        aside.append(_rejects(bad, reason, detail(bad), text_of))
        return pairs.filter(pa.array(good))

    if len(making.held_out):
        trained = pc.equal(pairs["split"], "train").to_numpy()
        found = np.zeros(len(pairs), bool)
        found[trained] = are_among(pairs.filter(pa.array(trained))["prompt_ids"].to_pylist(), making.held_out)
        pairs = keep(~found, "held_out", lambda bad: ["its prompt is one of a held-out set (shard.eval)"] * len(bad))
    ids = pairs["pair_id"].to_numpy()
    pairs = keep(np.append([True], ids[1:] != ids[:-1])[: len(ids)], "duplicate", _as_duplicates)
    if config.rows == "labelled":
        pairs, lone = with_mismatched(pairs, config.max_length)
        aside.append(_rejects(lone, "nothing_trained", [_LONE] * len(lone), text_of))
    rejects = pa.concat_tables(aside)
    schema.write_part(schema.validate(pairs.select(made.names), made, path.name), path)
    digests.note(path, making.out)
    if len(rejects):
        schema.write_part(rejects.select(schema.REJECTS.names), _rejects_of(path))
    else:
        _rejects_of(path).unlink(missing_ok=True)
    note_part(pairs, rejects, path, config)
    return _facts(pairs, rejects)


def _facts(pairs: pa.Table, rejects: pa.Table) -> dict[str, int]:
    prompt, one, other = schema.num_tokens(pairs)
    ids = [pairs[f"{name}_ids"] for name in ("prompt", *schema.sides(pairs.column_names))]
    facts = Counter(pairs["split"].to_pylist())
    facts.update({f"dropped/{reason}": n for reason, n in Counter(rejects["reason"].to_pylist()).items()})
    for name, rows in (("pairs", pairs), ("dropped", rejects)):
        facts.update({f"source/{which}/{name}": n for which, n in Counter(rows["which"].to_pylist()).items()})
    facts.update(
        rows=len(pairs) + len(rejects),
        pairs=len(pairs),
        tokens=int((2 * prompt + one + other).sum()),  # as scoring reads them: the prompt once a side
        prompt_tokens=int(prompt.sum()),
        longest=int((prompt + np.maximum(one, other)).max(initial=0)),
        largest_id=max(pc.max(pc.list_flatten(column)).as_py() or 0 for column in ids),
    )
    counted = [name for name in _COUNTED if name in pairs.column_names]
    facts.update({_COUNTED[name]: int(pc.sum(pairs[name]).as_py() or 0) for name in counted})
    return facts


_COUNTED = {
    "cut_prompt": "cut_prompts",
    "cut_completions": "cut_completions",
    "control_tokens": "control_tokens",
    "unended": "unended_completions",
    "label": "desirable",
}
_LONE = "no completion of another prompt has a trained token in the tokens that this prompt leaves of max_length"


def merge_rejects(out: Path) -> None:
    """One file for people, part by part, so that no process holds all rejects."""
    unfinished = out / ".rejects.parquet"
    with pq.ParquetWriter(unfinished, schema.REJECTS, compression="zstd") as writer:
        for path in sorted((out / ".rejects").glob("part-*.parquet")):
            writer.write_table(pq.read_table(path))
    unfinished.rename(out / "rejects.parquet")


def _of_part(rows: pa.Table, part: int) -> pa.Table:
    """Of rows that are sorted by their part."""
    start, end = np.searchsorted(rows["part"].to_numpy(), [part, part + 1])
    return rows.slice(start, end - start)


def _as_duplicates(repeated: pa.Table) -> list[str]:
    return [f"the same tokens as an earlier row: pair_id {pair_id}" for pair_id in repeated["pair_id"].to_pylist()]


def _rejects(rows: pa.Table, reason: str, detail: list[str], text_of: TextOf) -> pa.Table:
    return pa.table(
        {
            "source": rows["source"],
            "source_row": rows["source_row"],
            "reason": pa.array([reason] * len(rows), pa.string()),
            "detail": pa.array(detail, pa.string()),
            "row": text_of(rows),
            "which": rows["which"],
        },
        schema=_REJECTS,
    )


def _rejects_of(part: Path) -> Path:
    return part.parent / ".rejects" / part.name
