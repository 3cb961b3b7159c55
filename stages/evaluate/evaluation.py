"""What an evaluation leaves: the columns of its files, and a handle on them. Light: the pipeline reads it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages import schema
from stages.artifacts import Manifest, remedy
from stages.storage import folders

WRITERS = ("policy", "reference")

SAMPLES = pa.schema(
    [
        ("prompt_id", pa.string()),  # 16 hex digits of the prompt's token ids
        ("sample", pa.int32()),  # its number, from 0: both models have drawn it with the same seed
        ("split", pa.string()),  # of the pairs that the prompt is from; "prompts" where it is from a file
        ("prompt", pa.string()),
        *(
            column
            for writer in WRITERS
            for column in (
                (f"{writer}_text", pa.string()),
                (f"{writer}_ids", pa.list_(pa.int32())),
                (f"{writer}_stopped", pa.bool_()),  # by itself; else it was cut at max_tokens
                (f"{writer}_reward", pa.float64()),  # null without a judge, or where it gave none
                # What both models say of each token: log p(ids[t] | prompt, ids[<t]), nats
                (f"{writer}_by_policy", pa.list_(pa.float32())),
                (f"{writer}_by_reference", pa.list_(pa.float32())),
            )
        ),
        # What a judge prefers that compares both texts: 1 the policy's, 0 the reference's, 1/2 neither; as the policy's
        # stood first, and as it stood second. Null without such a judge, or where it gave no verdict
        ("policy_first", pa.float64()),
        ("policy_second", pa.float64()),
    ]
)
PLACES = ("first", "second")


@dataclass(frozen=True)
class Evaluation:
    """Output of `evaluate`: `evaluation.json`, all figures; `samples.parquet` (SAMPLES), what both models wrote; and
    `pairs.parquet`, what the loss saw of each held-out pair. Of the latter two what was asked for."""

    folder: Path

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.folder)

    @property
    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "evaluation.json").read_text())
        return found

    def of_reference(self) -> pa.Table:
        """What the reference wrote: `prompt_id`, `sample`, `prompt`, `text`, `ids`, `stopped`. Raises ContractError."""
        written = ["text", "ids", "stopped"]
        names = ["prompt_id", "sample", "prompt", *(f"reference_{name}" for name in written)]
        table = schema.read_columns(self.folder / "samples.parquet", names, remedy("evaluate"))
        return table.rename_columns([*names[:3], *written])

    def samples(self) -> Iterator[dict[str, Any]]:
        path = self.folder / "samples.parquet"
        if path.exists():
            with folders.opened(path) as source, pq.ParquetFile(source) as file:
                for batch in file.iter_batches(100):
                    yield from batch.to_pylist()
