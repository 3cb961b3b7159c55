"""What `shard` makes of which triples."""

from typing import Literal

from pydantic import Field

from stages.config import Config, Count, Fraction

Shape = Literal["auto", "explicit", "conversational", "implicit", "hh", "labelled"]


class Columns(Config):
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    margin: str | None = None  # a number: how much better chosen is
    completion: str = "completion"
    label: str = "label"  # of the completion: true where it is desirable


class ShardConfig(Config):
    source: str  # JSONL(.gz) or Parquet file, folder or glob of them, `datasets` folder, or hub name "org/set@revision"
    subset: str | None = None  # of a hub set: the name of its configuration
    split: str = "train"  # of a `datasets` folder or a hub set
    columns: Columns = Columns()
    shape: Shape = "auto"  # auto: told from the first row
    rows: Literal["pairs", "labelled"] = (
        "pairs"  # what is made; triples are unrolled into two labelled completions each
    )
    limit: Count | None = None  # take only the first rows
    tokenizer: str  # folder or hub name
    max_length: int = Field(1024, ge=8)  # tokens of prompt + completion
    max_prompt_length: Count | None = None  # the prompt is never cut below this; default: half of max_length
    truncation: Literal["keep_end", "keep_start", "drop"] = "keep_end"  # which end of a long prompt stays
    max_dropped_fraction: Fraction = 0.1  # the stage fails when more rows than this are dropped
    eval_fraction: Fraction = 0.1  # of the prompts, held out
    decontaminate: tuple[str, ...] = ()  # evaluation files: rows that hold 13 words of them are set aside
    num_parts: Count = 16  # the unit of work and retry in `score`


class ShardResources(Config):
    rows_per_task: Count = 1000  # rows that one Ray task tokenizes at a time
