"""What `shard` makes of which triples."""

import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from stages.config import Config, Count, Fraction

Shape = Literal["auto", "explicit", "conversational", "sharegpt", "implicit", "hh", "ranked", "compared", "labelled"]
Pairing = Literal["best_worst", "best_random", "adjacent", "all"]


class Columns(Config):
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    margin: str | None = None  # a number, how much better chosen is; or the difference "a - b" of two columns
    weight: str | None = None  # a number: of the pair in the loss
    system: str | None = None  # text that goes before the prompt as a system message
    completion: str = "completion"
    label: str = "label"  # of the completion: true where it is desirable
    # Of ranked rows: names of columns, or of keys in each completion. Left out, known sets' names are tried.
    completions: str | None = None  # the list of them
    scores: str | None = None  # higher is better
    ranks: str | None = None  # lower is better
    # Of compared rows, all three.
    first: str | None = None
    second: str | None = None
    preference: str | None = None  # a number: below 0 where the first is better

    @model_validator(mode="after")
    def _go_together(self) -> "Columns":
        if len({name is None for name in (self.first, self.second, self.preference)}) > 1:
            raise ValueError("first, second and preference name the two completions and the verdict. Give all three")
        return self


class Chat(Config):
    """What the chat template is told, beside the messages."""

    template: str | None = None  # a Jinja file, in place of the tokenizer's own
    kwargs: dict[str, Any] = {}  # for the template: {enable_thinking: false}
    kwargs_column: str | None = None  # of the set: a row's own kwargs, which win
    tools_column: str = "tools"  # of the set: JSON schemas of the tools
    system: str | None = None  # the system message of dialogues that have none
    date: datetime.date | None = None  # what the template reads from the clock


class ShardConfig(Config):
    source: str  # JSONL(.gz) or Parquet file, folder or glob of them, `datasets` folder, or hub name "org/set@revision"
    subset: str | None = None  # of a hub set: the name of its configuration
    split: str = "train"  # of a `datasets` folder or a hub set
    columns: Columns = Columns()
    shape: Shape = "auto"  # auto: told from the first 100 rows
    pairing: Pairing = "best_worst"  # which completions of a ranked row make pairs
    negative_margin: Literal["swap", "reject"] = "reject"  # a row whose margin says that rejected is better
    text: Literal["auto", "plain", "chat"] = "auto"  # plain strings: joined as they stand, or messages of a chat
    rows: Literal["pairs", "labelled"] = (
        "pairs"  # what is made; triples are unrolled into two labelled completions each
    )
    limit: Count | None = None  # take only the first rows
    tokenizer: str  # folder or hub name
    chat: Chat = Chat()
    train_on: Literal["completion", "assistant", "last_turn"] = (
        "assistant"  # all tokens of a completion, the assistant's turns in it, or the last of these
    )
    control_tokens: Literal["text", "keep", "reject"] = "text"  # what text of a message that spells one becomes
    max_length: int = Field(1024, ge=8)  # tokens of prompt + completion
    max_prompt_length: Count | None = None  # the prompt is never cut below this; default: half of max_length
    truncation: Literal["keep_end", "keep_start", "drop"] = "keep_end"  # which end of a long prompt stays
    max_dropped_fraction: Fraction = 0.1  # the stage fails when more rows than this are dropped
    eval_fraction: Fraction = 0.1  # of the prompts, held out
    num_parts: Count = 16  # the unit of work and retry in `score`


class ShardResources(Config):
    rows_per_task: Count = 10_000  # rows that one Ray task tokenizes, where a source can be cut
