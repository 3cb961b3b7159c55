"""What a set is, told from its first rows: what it can train, its columns, how long its texts are."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.begin.model import Model
from pipeline.bill.rows import Rows, rows_of
from pipeline.identity import Digests, source_identity
from stages.errors import RecipeError
from stages.sample.asked import as_shard
from stages.sample.config import SampleConfig
from stages.sample.look import measure as measure_prompts
from stages.shard.config import Columns, ShardConfig, Source
from stages.shard.look import Measured, first_rows, measure
from stages.shard.shapes.known import COMPLETIONS, PROMPTS, TEXTS, prompt_column
from stages.shard.shapes.tell import Told, shape_of, tell

SAMPLE = 200  # rows
# What sets call their columns whose names say it, though not in our words.
ASKED = ("prompt", *PROMPTS, "input", "user", "user_prompt")
PREFERRED = ("chosen", "better", "preferred", "good", "accepted", "chosen_response", "response_chosen", "winner", "win")
REFUSED = (
    "rejected", "worse", "dispreferred", "bad", "refused", "rejected_response", "response_rejected", "loser", "lose",
)  # fmt: skip
_PLAIN = ("explicit", "implicit", "hh", "labelled")


@dataclass(frozen=True)
class Data:
    source: str  # as it was named
    kind: Literal["pairs", "labelled", "prompts"]
    shape: str
    columns: dict[str, str]  # role -> name, of those that the recipe has to name
    as_chat: bool  # plain strings that become messages
    rows: Rows
    looked: int
    lengths: list[int]  # tokens of each row looked at: of its longer sequence, or of its prompt; without a template's
    notices: tuple[str, ...]

    @classmethod
    def at(cls, name: str, model: Model) -> "Data":
        """Raises RecipeError where there is none or nothing can be made of it, in the words of `shard` and `sample`."""
        rows = _first(name)
        objects = [row for _, text in rows if isinstance(row := _parsed(text), dict)]
        if objects and _asks_alone(objects[0]):
            return _prompts(name, model, objects[0])
        told, columns = _tell(rows, objects[0] if objects else {}, name)
        kind: Literal["pairs", "labelled"] = "labelled" if told.shape == "labelled" else "pairs"
        as_chat = model.chat and told.shape in _PLAIN and not told.of_messages
        config = ShardConfig(
            source=name,
            columns=Columns(**columns),
            text="chat" if as_chat else "auto",
            rows="labelled" if kind == "labelled" else "pairs",
            tokenizer=model.name,
            max_length=model.context or 2**20,
        )
        (source,) = config.all_sources
        seen = measure(source, config, SAMPLE)
        assert seen is not None
        counted = rows_of(config)
        assert counted is not None
        return cls(name, kind, seen.told.shape, columns, as_chat, counted, seen.rows, seen.lengths, _notices(seen))

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def told(self) -> str:
        number = f"{self.rows.count:,} rows" if self.rows.exact else f"about {self.rows.count:,} rows"
        what = "prompts alone" if self.kind == "prompts" else f"of the shape {self.shape}"
        of = "prompt" if self.kind == "prompts" else "row"
        middle = sorted(self.lengths)[len(self.lengths) // 2]
        tokens = f"; of the first {self.looked} the median {of} has about {middle} tokens, the longest {self.longest}"
        return f"{number}, {what}{tokens if self.longest else ''}"


def _first(name: str) -> list[tuple[int, str]]:
    if (rows := first_rows(Source(source=name), SAMPLE)) is None:
        if "://" not in name:
            source_identity(name, Digests(None), "DATA")  # says where it was looked for
        raise RecipeError(
            f"DATA {name} is not on this machine, and init looks at rows. Fetch it first, or write the recipe by hand: "
            "raydpo recipes lists some to begin with"
        )
    return rows


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _tell(rows: list[tuple[int, str]], row: dict[str, Any], name: str) -> tuple[Told, dict[str, str]]:
    """With the columns that the recipe has to name, where the usual names are not there and others say the same."""
    texts = [text for _, text in rows]
    try:
        return tell(texts, Columns(), name), {}
    except RecipeError:
        columns: dict[str, str] = {}
        for role, names in (("prompt", ASKED), ("chosen", PREFERRED), ("rejected", REFUSED)):
            columns |= _one(role, row, names) if role not in row else {}
        if not columns:
            raise
        if {"chosen", "rejected"} - {*row, *columns}:
            raise  # its message says all that is missing
        return tell(texts, Columns(**columns), name), columns


def _one(role: str, row: dict[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    spelt = {key.strip().lower().replace(" ", "_"): key for key in row}
    name = next((spelt[each] for each in names if each in spelt), None)
    return {role: name} if name is not None else {}


def _asks_alone(row: dict[str, Any]) -> bool:
    """Whether there is a prompt, and nothing that could answer it."""
    answers = {"chosen", "rejected", *TEXTS, *COMPLETIONS, *PREFERRED, *REFUSED}
    answered = shape_of(row, Columns()) is not None or answers & {key.lower() for key in row}
    return prompt_column(row, Columns(), PROMPTS) in row and not answered


def _prompts(name: str, model: Model, row: dict[str, Any]) -> Data:
    most = model.context or 2**20
    config = SampleConfig(source=name, tokenizer=model.name, models=(model.name,), max_prompt_length=most)
    seen, counted = measure_prompts(config, SAMPLE), rows_of(as_shard(config))
    assert seen is not None
    assert counted is not None
    notices, asked = [*seen.notices], prompt_column(row, Columns(), PROMPTS)
    unread = [key for key in row if isinstance(row[key], str | list) and key != asked]
    if len(unread) > 1:
        notices.append(
            f"{name}: of columns {', '.join(map(repr, unread))} none is taken for an answer. If one is the better one "
            "and one the worse, call them chosen and rejected"
        )
    return Data(name, "prompts", "prompts", {}, False, counted, seen.rows, seen.lengths, tuple(notices))


def _notices(seen: Measured) -> tuple[str, ...]:
    problems = (
        [f"{len(seen.problems)} of the first {seen.rows} rows make no pair: {seen.problems[0]}"]
        if seen.problems
        else []
    )
    return tuple(dict.fromkeys([*seen.told.notices, *seen.notices, *problems]))
