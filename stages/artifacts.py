"""Typed read handles on artifacts: what one stage writes and the next one reads.

An artifact is a folder. `manifest.json` is written last, so a folder without one is unfinished work.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import schema, spans
from stages.digests import Noted, read_manifest, written_manifest
from stages.errors import ContractError, MissingArtifact
from stages.storage import folders

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FileRecord:
    name: str  # relative to the artifact's folder, "/" between folders
    bytes: int
    sha256: str
    rows: int | None  # of a Parquet file


@dataclass(frozen=True)
class Manifest:
    """Everything about a finished artifact: what it was made from, what it holds, and who made it."""

    stage: str
    fingerprint: str
    payload: dict[str, Any]  # what was hashed to give the fingerprint
    files: list[FileRecord]
    facts: dict[str, Any]  # what the stage reports of its work
    provenance: dict[str, Any]  # versions, machine, times: recorded, never part of the identity

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises MissingArtifact where there is none, ContractError where it is not as it was written."""
        try:
            return read_manifest(cls, (folder / MANIFEST).read_bytes(), f"{folder / MANIFEST}")
        except FileNotFoundError as error:
            raise MissingArtifact(f"{folder} holds no finished artifact: it has no {MANIFEST}") from error

    def write(self, folder: Path) -> None:
        unfinished = folder / f".{MANIFEST}"
        unfinished.write_bytes(written_manifest(asdict(self)))
        unfinished.rename(folder / MANIFEST)


def list_files(folder: Path) -> Iterator[FileRecord]:
    """Every file of an artifact, by name; what is hidden at the top is scratch and does not count."""
    noted = Noted(folder)

    def record(path: Path) -> FileRecord:
        rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
        return FileRecord(path.relative_to(folder).as_posix(), path.stat().st_size, noted.sha256_of(path), rows)

    names = [path.relative_to(folder) for path in folder.rglob("*")]
    files = [folder / name for name in names if not name.parts[0].startswith(".") and name != Path(MANIFEST)]
    with ThreadPoolExecutor() as pool:  # reading and hashing do not hold the interpreter
        yield from pool.map(record, sorted(path for path in files if path.is_file()))


@dataclass(frozen=True)
class PreferencePairs:
    """Output of `shard`: tokenized pairs in `part-NNNNN.parquet` (schema.PAIRS), dropped rows in `rejects.parquet`."""

    folder: Path

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.folder)

    @property
    def parts(self) -> list[str]:
        return [path.name for path in sorted(self.folder.glob("part-*.parquet"))]

    @property
    def labelled(self) -> bool:
        """Labelled completions (schema.LABELLED) instead of pairs."""
        return bool(self.manifest.facts.get("labelled"))

    @property
    def num_sources(self) -> int:
        """From how many the pairs are that are trained on; 0 where nobody has counted."""
        counts = self.manifest.facts.get("report", {}).get("sources", {})
        return len(set(self.sources_of([name for name, each in counts.items() if each.get("train")])))

    def sources_of(self, files: Sequence[str]) -> list[str]:
        """Of values of the column `source`: a source's name in place of its files', where it has one."""
        if not any("/" in file for file in files):
            return list(files)
        names = self.manifest.facts.get("sources", ())
        found = {file: next((name for name in names if file.startswith(f"{name}/")), file) for file in set(files)}
        return [found[file] for file in files]

    def read(self, part: str) -> pa.Table:
        return schema.read_part(self.folder / part, (schema.PAIRS, schema.LABELLED), remedy("shard"))

    def columns(self, part: str, names: list[str]) -> pa.Table:
        """Some columns of a part, which are not checked."""
        return schema.read_columns(self.folder / part, names, remedy("shard"))

    def rows(self) -> Iterator[dict[str, Any]]:
        """One by one, part by part, as plain data; unchecked."""
        return _rows([self.folder / part for part in self.parts])

    def rejects(self) -> Iterator[dict[str, Any]]:
        """Rows of schema.REJECTS. An artifact that is not finished may have them too."""
        path = self.folder / "rejects.parquet"
        if not path.exists():
            raise MissingArtifact(
                f"{self.folder} holds no rejects.parquet yet. Make it: raydpo run RECIPE --only shard"
            )
        return _rows([path])

    def pair_ids(self, part: str) -> pa.ChunkedArray:
        return schema.read_columns(self.folder / part, ["pair_id"], remedy("shard"))["pair_id"]


@dataclass(frozen=True)
class ReferenceLogprobs:
    """Output of `score`: one file for each part of the pairs, row for row (schema.LOGPROBS).

    `rejects.parquet` (schema.UNSCORED) names the pairs that could not be scored.
    """

    folder: Path

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.folder)

    @property
    def parts(self) -> list[str]:
        return [path.name for path in sorted(self.folder.glob("part-*.parquet"))]

    def read(self, part: str, pairs: pa.Table) -> pa.Table:
        """The log-probs of `pairs`, a part as PreferencePairs.read gives it; a zip that checks every row."""
        table = self.read_unchecked(part)
        check_covers(table, pairs, f"{self.folder / part}")
        return table

    def read_unchecked(self, part: str) -> pa.Table:
        """A part by itself, for who takes single rows out of it."""
        return schema.read_part(self.folder / part, (schema.LOGPROBS, schema.LABELLED_LOGPROBS), remedy("score"))

    def errors(self, part: str) -> pa.ChunkedArray:
        """Null, or why a row could not be scored."""
        return schema.read_columns(self.folder / part, ["error"], remedy("score"))["error"]

    def scored_ids(self, part: str) -> pa.ChunkedArray:
        """pair_id of the rows without error."""
        table = schema.read_columns(self.folder / part, ["pair_id", "error"], remedy("score"))
        return table["pair_id"].filter(pc.is_null(table["error"]))

    def check_scored_from(self, pairs: PreferencePairs) -> None:
        """Refuse log-probs of other pairs before a single row is read."""
        scored, given = self.manifest.payload["inputs"]["pairs"][:12], pairs.manifest.fingerprint[:12]
        if scored != given:
            raise ContractError(
                f"ReferenceLogprobs {self.folder.name} was scored from PreferencePairs {scored}, but train was given "
                f"{given}. Score these pairs: raydpo run RECIPE --only score"
            )


@dataclass(frozen=True)
class PolicyCheckpoint:
    """Output of `train`: `policy/` (Hugging Face), `checkpoints/step-NNNNNNNN/`, `metrics.jsonl`.

    With LoRA, `adapter/` (peft), and `policy/` only where the recipe asks for the merged model.
    """

    folder: Path

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.folder)

    @property
    def policy(self) -> Path:
        """The exported model, or its adapter where only that was exported."""
        merged = self.folder / "policy"
        return merged if merged.is_dir() else self.folder / "adapter"

    @property
    def metrics(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def check_covers(logprobs: pa.Table, pairs: pa.Table, where: str) -> None:
    """Raise ContractError unless `logprobs` holds finite values for exactly the rows and trained tokens of `pairs`.

    Rows with an `error` hold none.
    """
    if not logprobs["pair_id"].equals(pairs["pair_id"]):
        both = zip(logprobs["pair_id"].to_pylist(), pairs["pair_id"].to_pylist(), strict=False)
        row = next((i for i, (left, right) in enumerate(both) if left != right), min(len(logprobs), len(pairs)))
        raise ContractError(
            f"{where} holds log-probs of other pairs: {len(logprobs)} rows for {len(pairs)} pairs, and from row {row} "
            f"on the pair_id differs. {remedy('score')}"
        )
    scored = pc.is_null(logprobs["error"])
    logprobs, pairs = logprobs.filter(scored), pairs.filter(scored)
    for side in schema.sides(pairs.column_names):
        tokens = logprobs[f"ref_{side}_token_logps"].combine_chunks()
        if not np.array_equal(tokens.value_lengths().to_numpy(), spans.counts(pairs[f"{side}_trained"])):
            raise ContractError(f"{where} has not as many {side} log-probs as trained tokens. {remedy('score')}")
        for values in (tokens.flatten(), logprobs[f"ref_{side}_logps"].combine_chunks()):
            if not _all_finite(values):
                raise ContractError(f"{where} has {side} log-probs that are not finite. {remedy('score')}")


def _rows(paths: list[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with folders.opened(path) as source, pq.ParquetFile(source) as file:
            for batch in file.iter_batches(100):
                yield from batch.to_pylist()


def _all_finite(values: pa.Array) -> bool:
    return not values.null_count and bool(pc.all(pc.is_finite(values), min_count=0).as_py())


def remedy(stage: str) -> str:
    """Of a file of `stage` that is damaged."""
    return f"Delete the file and make it again: raydpo run RECIPE --only {stage}"
