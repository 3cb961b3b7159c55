"""What `shard` makes of which triples."""

import datetime
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from stages.config import Config, Count, Fraction, Labels
from stages.shard.reading.where import check
from stages.storage.named import unmarked

Shape = Literal["auto", "explicit", "conversational", "sharegpt", "implicit", "hh", "ranked", "compared", "labelled"]
Pairing = Literal["best_worst", "best_random", "adjacent", "all"]
Take = Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, le=1)]


def _readable(where: str) -> str:
    check(where)
    return where


Where = Annotated[str, AfterValidator(_readable)]


class Columns(Config):
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    margin: str | None = None  # a number, how much better chosen is; or the difference "a - b" of two columns
    weight: str | None = None  # a number: of the pair in the loss
    system: str | None = None  # text that goes before the prompt as a system message
    completion: str = "completion"
    label: str = "label"  # of the completion: true where it is desirable
    # How the sampling of a completion ended: one that was cut gets no end token, which its model did not write.
    chosen_finish: str = "chosen_finish"
    rejected_finish: str = "rejected_finish"
    finish: str = "finish_reason"  # of a labelled completion; of ranked ones a key in each
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


class Selection(Config):
    """What is read of a source, and how. Where one of several does not say, it is as the whole says."""

    subset: str | None = None  # of a hub set: the name of its configuration; of a folder: a folder in it
    split: str = "train"  # of a `datasets` folder, a hub set, or a folder of files that are named so
    columns: Columns = Columns()
    shape: Shape = "auto"  # auto: told from the first 100 rows
    pairing: Pairing = "best_worst"  # which completions of a ranked row make pairs
    negative_margin: Literal["swap", "reject"] = "reject"  # a row whose margin says that rejected is better
    text: Literal["auto", "plain", "chat"] = "auto"  # plain strings: joined as they stand, or messages of a chat
    where: Where | None = None  # take only rows for which this holds, an expression over columns


class Source(Selection):
    """One of several. Its `name` stands in the column `source` and in the facts."""

    source: str  # as ShardConfig.source
    name: str | None = Field(None, pattern=r"^[\w][\w.-]*$")  # default: the last piece of `source`
    take: Take | None = None  # rows: a number, or a fraction; chosen by hash, so that more contains less
    weight: float = Field(1.0, gt=0)  # of its pairs in the loss

    @property
    def label(self) -> str:
        return self.name or PurePosixPath(unmarked(self.source)[0].split("@")[0]).name or self.source


class ShardConfig(Selection):
    source: str | None  # a file, a folder or pattern of them, a `datasets` folder, or a hub name "org/set@revision"
    first_of: tuple[str, ...] | None = Field(None, min_length=1)  # instead: the first of these that is at hand
    sources: tuple[Source, ...] = ()  # instead: several
    eval: tuple[Source, ...] = ()  # held-out sets, each with a name
    rows: Literal["pairs", "labelled"] = (
        "pairs"  # what is made; triples are unrolled into two labelled completions each
    )
    limit: Count | None = None  # take only the first rows, of each source
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
    decontaminate: tuple[str, ...] = ()  # evaluation files: rows that hold 13 words of them are set aside
    num_parts: Literal["auto"] | Count = "auto"  # the unit of work and retry in `score`; auto: of about 1000 rows each

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        given = [
            key
            for key in ("source", "first_of", "sources")
            if content.get(key) is not None and (key != "sources" or content[key])
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given, and say the same thing. Keep one of them")
        return content if "source" in content or not given else content | {"source": None}

    @field_validator("source", mode="before")
    @classmethod
    def _no_list(cls, source: Any) -> Any:
        if isinstance(source, list | tuple):
            raise ValueError(
                "a source is one name. For the first one at hand of several write first_of: [..], for all of them "
                "sources: [{source: ..}, ..]"
            )
        return source

    @model_validator(mode="after")
    def _are_told_apart(self) -> "ShardConfig":
        unnamed = [each.source for each in self.eval if each.name is None]
        if unnamed:
            raise ValueError(f"shard.eval: {unnamed[0]} has no name. Its metrics need one: name: ..")
        labels = [each.label for each in (*self.sources, *self.eval)]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"{labels.count(label)} sources are called {label}. Give each a name of its own")
        return self

    @property
    def unread(self) -> frozenset[str]:
        """A set that is named is read instead of what a judge has made."""
        return frozenset({"triples"} if self.source is not None or self.sources or self.first_of is not None else ())

    @property
    def all_sources(self) -> tuple[Source, ...]:
        """All that is read, in order: what is trained on, then the held-out sets."""
        if self.source is not None:
            own = {name: getattr(self, name) for name in Selection.model_fields}
            return (Source(source=self.source, **own), *self._whole(self.eval, "where"))
        return (*self._whole(self.sources), *self._whole(self.eval, "where"))

    def _whole(self, sources: tuple[Source, ...], *but: str) -> Iterator[Source]:
        for each in sources:
            unsaid = [name for name in Selection.model_fields if name not in (*each.model_fields_set, *but)]
            yield each.model_copy(update={name: getattr(self, name) for name in unsaid} | {"name": each.label})

    @property
    def named(self) -> str:
        """For messages."""
        return ", ".join(unmarked(each.source)[0] for each in self.all_sources)

    @property
    def num_trained(self) -> int:
        """How many of `all_sources` are no held-out sets."""
        return len(self.all_sources) - len(self.eval)


class ShardResources(Config):
    rows_per_task: Count = 4_000  # rows that one Ray task tokenizes, where a source can be cut
    labels: Labels = {}
