"""What is asked of which models, and how completions are drawn."""

from typing import Literal

from pydantic import Field

from stages.config import Count, Elastic, Fraction, Labels
from stages.engine.config import EngineResources, Sampling
from stages.shard.config import Chat, Columns, Where


class SampleConfig(Sampling):
    source: str  # of prompts: all that `shard` reads, of a prompt, of messages, or of pairs
    subset: str | None = None  # of a hub set: the name of its configuration; of a folder: a folder in it
    split: str = "train"  # of a `datasets` folder, a hub set, or a folder of files that are named so
    columns: Columns = Columns()  # `prompt`, or those of pairs
    where: Where | None = None  # take only rows for which this holds, an expression over columns
    limit: Count | None = None  # take only the first rows
    text: Literal["auto", "plain", "chat"] = "auto"  # a text is gone on with, or a message; auto: by the chat template
    tokenizer: str  # folder or hub name; of all models
    chat: Chat = Chat()
    models: tuple[str, ...] = Field(min_length=1)  # folders or hub names; each draws num_samples
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_tokens: Count = 256
    max_prompt_length: Count = 512  # tokens; longer ones are set aside
    max_rejected_fraction: Fraction = 0.1  # the stage fails when more rows than this make no prompt, or have no answer
    num_parts: Literal["auto"] | Count = "auto"  # of prompts: units of work and retry; auto: of 256 completions each


class SampleResources(EngineResources):
    actors: Count | Elastic = 1  # engines at work; of several models one after the other
    cpus_per_actor: Count = 1
    labels: Labels = {}
    attempts: Count = 3  # at a part, before the prompts that make it fail are searched for and set aside
