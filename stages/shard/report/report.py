"""The data report: each part leaves its figures and hashes, and at the end they are merged."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.shard.config import ShardConfig
from stages.shard.report.alike import facts_of, write_hashes
from stages.shard.report.figures import Figures


def note_part(pairs: pa.Table, rejects: pa.Table, part: Path, config: ShardConfig) -> None:
    """Leave what the report needs of the part of that path, beside it, in scratch that goes when all is finished."""
    folder = part.parent / ".report"
    folder.mkdir(exist_ok=True)
    write_hashes(pairs, folder / part.stem, held_out=bool(config.eval_fraction))
    figures = Figures.of(pairs, rejects, config.max_length)
    unfinished = folder / f".{part.stem}.json"
    unfinished.write_text(json.dumps(figures.plain()))
    unfinished.rename(folder / f"{part.stem}.json")


def report_of(out: Path) -> dict[str, Any]:
    """Of all parts that were noted, in their order: the same however they were divided among workers."""
    folder, whole = out / ".report", Figures()
    for path in sorted(folder.glob("*.json")):
        whole.add(Figures.from_plain(json.loads(path.read_text())))
    return whole.facts() | {"alike": {"duplicates": whole.duplicates} | facts_of(folder)}
