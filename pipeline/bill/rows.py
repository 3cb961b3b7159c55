"""How many rows a source has: counted where that is quick, else estimated from the size of its files."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from stages.shard.config import ShardConfig, Source
from stages.shard.look import first_rows
from stages.shard.reading.files import File, files_of
from stages.shard.reading.opening import is_array, is_compressed, told
from stages.shard.reading.survey import survey

SAMPLE = 200  # rows, of which an estimate is made
LINES = 200 << 20  # bytes of lines that are counted within a second
PARSED = 16 << 20  # bytes of what has to be parsed for that: arrays, cells, compressed lines, rows that `where` picks


@dataclass(frozen=True)
class Rows:
    count: int
    exact: bool


def rows_of(config: ShardConfig) -> Rows | None:
    """Of all sources, as `where`, `take` and `limit` leave them; None where one is not on this machine.

    Raises RecipeError where one cannot be read.
    """
    found = [of_source(source, config) for source in config.all_sources]
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return None
    return Rows(sum(each.count for each in known), all(each.exact for each in known))


def of_source(source: Source, config: ShardConfig) -> Rows | None:
    if (first := first_rows(source, SAMPLE)) is None:
        return None
    path = Path(source.source).expanduser()
    saved = next((each for each in (path, path / source.split) if (each / "state.json").exists()), None)
    picks = source.where is not None or source.take is not None
    if saved is not None:
        count = _of_arrow(saved)
    else:
        files = files_of(source)
        if sum(map(_effort, files)) * (LINES // PARSED if picks else 1) <= LINES:
            alone = {"sources": (), "eval": (), "first_of": None, "limit": config.limit}
            whole = config.model_copy(update=alone | {"source": None, "sources": (source,)})
            return Rows(sum(survey(whole, 4_000).taken), exact=True)
        count = _by_size([text for _, text in first], files)
    if isinstance(source.take, float):
        count = round(count * source.take)
    count = min([count, *(most for most in (source.take, config.limit) if isinstance(most, int))])
    return Rows(count, exact=saved is not None and not picks)


def _effort(file: File) -> int:
    """Bytes of plain lines that are counted in the same time."""
    path = Path(file.path)
    if file.kind == "parquet":
        return 0  # its foot says it
    plain = file.kind == "lines" and not is_compressed(file.path) and not is_array(file.path)
    return path.stat().st_size * (1 if plain else LINES // PARSED)


def _by_size(sample: list[str], files: list[File]) -> int:
    """As many as the files would hold if all rows were as long as the first ones, and compressed as well as these."""
    text = "\n".join(sample).encode()
    ratio = len(zlib.compress(text)) / max(len(text), 1)
    size = sum(Path(file.path).stat().st_size / (ratio if is_compressed(file.path) else 1) for file in files)
    return round(size / max(len(text) / len(sample), 1))


def _of_arrow(folder: Path) -> int:
    count = 0
    for each in json.loads((folder / "state.json").read_text())["_data_files"]:
        name = str(folder / each["filename"])
        with told(name), pa.memory_map(name) as file:
            count += sum(batch.num_rows for batch in pa.ipc.open_stream(file))
    return count
