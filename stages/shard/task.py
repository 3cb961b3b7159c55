"""What the Ray tasks of the two passes do: a slice of the source becomes fragments, and these become parts."""

import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.shard.batch import Origin, Raw, batches, tokenized
from stages.shard.config import Shape, ShardConfig
from stages.shard.parts.fragment import num_cells, parts_of, write_fragment
from stages.shard.parts.held_out import read_prompts, write_prompts
from stages.shard.parts.part import Making, write_cells
from stages.shard.reading.source import Slice
from stages.shard.tokenization import Tokenizer

_HELD_OUT = ".held-out.npy"
_FRAGMENT_BYTES = 64 << 20  # of the rows that a task holds


@dataclass(frozen=True)
class Job:
    """What all tasks know."""

    config: ShardConfig
    shapes: list[Shape]  # of each source
    num_parts: int
    out: str
    scratch: str  # the folder of the fragments

    def origin_of(self, piece: Slice) -> Origin:
        return Origin(piece.source, self.shapes[piece.which], piece.which >= self.config.num_trained)


@dataclass(frozen=True)
class SliceDone:
    """What a slice left in the scratch folder; written there last, so that a run which was killed goes on after it."""

    fragments: list[str]
    set_aside: list[str]
    cells: list[int]  # bytes that each has in the fragments
    notices: list[str]

    @classmethod
    def read(cls, path: Path) -> "SliceDone":
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        unfinished = path.with_name(f".{path.name}")
        unfinished.write_text(json.dumps(asdict(self)))
        unfinished.rename(path)


def tokenize_slice(piece: Slice, index: int, job: Job) -> SliceDone:
    name, scratch, tokenizer = f"{index:06d}", Path(job.scratch), _tokenizer(job.config.model_dump_json())
    fragments: list[str] = []
    aside: list[str] = []
    cells = np.zeros(num_cells(job.num_parts))
    origin = job.origin_of(piece)
    for number, (rows, rejects) in enumerate(_collected(piece, origin, tokenizer, job)):
        if len(rows) and origin.held_out:
            write_prompts(rows["prompt_ids"].to_pylist(), scratch / f"{name}-{number:04d}{_HELD_OUT}")
        if len(rows):
            fragments.append(f"{name}-{number:04d}.rows.arrow")
            cells += write_fragment(rows, scratch / fragments[-1], job.num_parts)
        if len(rejects):
            aside.append(f"{name}-{number:04d}.aside.arrow")
            write_fragment(rejects, scratch / aside[-1], job.num_parts)
    done = SliceDone(fragments, aside, cells.astype(int).tolist(), tokenizer.notices)
    done.write(done_file(job, index))
    return done


def done_file(job: Job, index: int) -> Path:
    return Path(job.scratch) / f"{index:06d}.json"


def _collected(piece: Slice, origin: Origin, tokenizer: Tokenizer, job: Job) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Tokenized batches, joined until they are a fragment."""
    held: list[tuple[pa.Table, pa.Table]] = []
    for batch in batches(Raw(piece.name, number, text, piece.which) for number, text in piece.rows()):
        held.append(tokenized(batch, origin, tokenizer, job.config, job.num_parts))
        if sum(table.nbytes for both in held for table in both) > _FRAGMENT_BYTES:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(held: Sequence[tuple[pa.Table, pa.Table]]) -> tuple[pa.Table, pa.Table]:
    rows, rejects = zip(*held, strict=True)
    return pa.concat_tables(rows), pa.concat_tables(rejects)


@lru_cache(maxsize=1)  # once a worker process; the driver, which has no use for it, would take seconds to import it
def _tokenizer(config: str) -> Tokenizer:
    made = Tokenizer(ShardConfig.model_validate_json(config))
    gc.freeze()  # what was imported is never garbage, and looking through it takes a tenth of the time
    return made


def first_pass(slices: pa.Table, job: Job) -> pa.Table:
    """`tokenize_slice` as Ray Data calls it."""
    for row in slices.to_pylist():
        tokenize_slice(Slice(**json.loads(row["slice"])), row["index"], job)
    return slices.select(["index"])


def second_pass(groups: pa.Table, job: Job, fragments: Sequence[str], set_aside: Sequence[str]) -> pa.Table:
    """`write_cells` as Ray Data calls it: first and last cell -> how many parts were written, and their facts."""
    scratch = Path(job.scratch)
    paths = [scratch / name for name in fragments], [scratch / name for name in set_aside]
    making = Making(job.config, job.num_parts, Path(job.out), _held_out(job.scratch))
    facts = []
    for row in groups.to_pylist():
        cells = range(row["first"], row["last"] + 1)
        found = write_cells(cells, *paths, making)
        facts.append(json.dumps({"parts": sum(len(parts_of(cell, job.num_parts)) for cell in cells)} | found))
    return pa.table({"facts": facts})


@lru_cache(maxsize=1)  # once a worker process: all slices are done by then
def _held_out(scratch: str) -> np.ndarray:
    return read_prompts(Path(scratch).glob(f"*{_HELD_OUT}"))
