"""A look at the first rows, before anything is started: what `shard` would say of them later, said in a second.

It loads no transformers, and renders no template: it counts the tokens of the texts.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from stages.errors import RecipeError
from stages.model_files import at_hand, check_tokenizer, has_chat_template
from stages.shard.config import ShardConfig, Source
from stages.shard.reading.opening import told
from stages.shard.reading.survey import nothing_of, sample
from stages.shard.report.contamination import texts_of
from stages.shard.shapes.tell import Told, tell_source
from stages.shard.triple import Labelled, Rejected, Triple, made_of, read
from stages.storage.named import unmarked

ROWS = 20
_COUNTED = 50_000  # characters
Count = Callable[[str], int]


@dataclass(frozen=True)
class Look:
    """What was seen of the first rows: a line for people, and what they should know before they start."""

    told: str
    notices: tuple[str, ...] = ()


def look(config: ShardConfig) -> Look:
    """Read, parse and measure the first rows of all sources. Raises RecipeError where `shard` would fail on one."""
    if config.chat.template is not None:
        from stages.shard.rendering.template import read_template  # it imports Jinja

        read_template(config.chat.template)
    seen = [_look_at(source, config) for source in config.all_sources]
    return Look(
        "\n".join(each.told for each in seen), tuple(dict.fromkeys(note for each in seen for note in each.notices))
    )


@dataclass(frozen=True)
class Measured:
    """The first rows of a source, of which one at least makes a pair."""

    rows: int
    told: Told
    made: list[list[tuple[int, ...]]]  # of each that makes pairs: tokens of their prompt and completions, by text alone
    counted: bool  # else the tokenizer is not at hand, and all of them are 0
    problems: list[str]  # of each that makes none
    notices: list[str]

    @property
    def lengths(self) -> list[int]:
        """Of each row that makes pairs, of its longest sequence."""
        return [max(prompt + max(others) for prompt, *others in pairs) for pairs in self.made]


def measure(source: Source, config: ShardConfig, count: int = ROWS) -> Measured | None:
    """Of a source that is elsewhere None. Raises RecipeError as `look` does."""
    if (rows := first_rows(source, count)) is None:
        return None
    found = tell_source([text for _, text in rows], source, config)
    counted, notices = counter(config, source, found.of_messages)
    made, problems = [], []
    for number, text in rows:
        try:
            pairs = made_of(read(text, found.shape, source, config))
            made.append([_lengths(each, config, counted) for each in pairs])
        except Rejected as error:
            problems.append(f"row {number}: {error.detail}")
    if not made:
        raise RecipeError(
            f"none of the first {len(rows)} rows of {source.source} makes a pair: {problems[0]}. Look at the rows, at "
            "shard.columns and shard.max_length"
        )
    return Measured(len(rows), found, made, counted is not None, problems, notices)


def _look_at(source: Source, config: ShardConfig) -> Look:
    name = unmarked(source.source)[0]
    if (seen := measure(source, config)) is None:
        return not_here(name)
    said = f"the first {seen.rows} rows of {Path(name).name} have the shape {seen.told.shape}"
    if seen.counted:
        said += f"; the longest has about {max(seen.lengths)} tokens, and shard.max_length is {config.max_length}"
    notices = [*seen.told.notices, *seen.notices]
    if cut := sum(length > config.max_length for length in seen.lengths):
        keeps = "start" if config.truncation == "keep_end" else "end"
        notices.append(
            f"{cut} of the first {seen.rows} rows of {Path(name).name} are longer than shard.max_length, "
            f"{config.max_length}: prompts lose their {keeps}, then completions. Raise it if the model takes more"
        )
    if seen.problems:
        notices.append(
            f"{len(seen.problems)} of the first {seen.rows} rows of {Path(name).name} make no pair: {seen.problems[0]}"
        )
    return Look(said, tuple(notices))


def _lengths(row: Triple | Labelled, config: ShardConfig, count: Count | None) -> tuple[int, ...]:
    """Tokens of prompt and completions, without a template's. Raises Rejected where nothing can be trained on."""
    completions = [row.completion] if isinstance(row, Labelled) else [row.chosen, row.rejected]
    texts = ["\n".join(texts_of(each)) for each in completions]
    if not isinstance(row, Labelled) and row.chosen == row.rejected:
        raise Rejected("equal", "chosen and rejected are the same text")
    if not all(text.strip() or _calls(each) for text, each in zip(texts, completions, strict=True)):
        raise Rejected("empty", "a completion is empty")
    if config.train_on != "completion" and any(map(_says_nothing_trained, completions)):
        raise Rejected("nothing_trained", "a completion has no turn of the assistant, and no others are trained on")
    if not count:
        return (0,) * (1 + len(texts))
    try:
        prompt, counts = count("\n".join(texts_of(row.prompt))), list(map(count, texts))
    except (UnicodeError, TypeError) as error:  # a lone surrogate
        raise Rejected("malformed", f"the tokenizer cannot read a text of this row: {error}") from error
    longest = prompt + max(counts)
    if longest > config.max_length and config.truncation == "drop":
        raise Rejected("too_long", f"it has {longest} tokens or more, and shard.max_length is {config.max_length}")
    return (prompt, *counts)


def _calls(completion: Any) -> bool:
    """A turn that calls tools, and says nothing."""
    return isinstance(completion, list) and any(
        isinstance(each, dict) and each.get("tool_calls") for each in completion
    )


def _says_nothing_trained(completion: Any) -> bool:
    return isinstance(completion, list) and all(message["role"] != "assistant" for message in completion)


def counter(config: ShardConfig, source: Source, of_messages: bool) -> tuple[Count | None, list[str]]:
    """What counts a text's tokens, if the tokenizer is at hand. Raises RecipeError where it has no chat template."""
    check_tokenizer(config.tokenizer, "shard.tokenizer")
    templated = True if config.chat.template is not None else has_chat_template(config.tokenizer)
    if of_messages and templated is False:
        raise RecipeError(
            f"{source.source} holds lists of messages, and the tokenizer of {config.tokenizer} has no chat template to "
            "write them with. Use the tokenizer of a chat model, or rows of plain strings"
        )
    if templated is None and not Path(config.tokenizer).exists():
        return None, [f"the tokenizer of {config.tokenizer} is not on this machine yet: it was not looked at"]
    if (file := at_hand(config.tokenizer, "tokenizer.json")) is None:
        return None, []
    from tokenizers import Tokenizer

    with told(str(file)):
        tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()

    def count(text: str) -> int:
        """Of a very long text about as many as its start has."""
        start = text[: max(_COUNTED, 8 * config.max_length)]
        found = len(tokenizer.encode(start, add_special_tokens=False).ids)
        return found * len(text) // max(len(start), 1)

    return count, []


def not_here(name: str) -> Look:
    return Look(f"{name} is not on this machine: no row was looked at")


def first_rows(source: Source, count: int = ROWS) -> list[tuple[int, str]] | None:
    """(row number, JSON text) of them; None where the source is elsewhere. Raises RecipeError where there is none."""
    name, path = unmarked(source.source)[0], Path(source.source)
    if not Path(name).exists() and not any(character in name for character in "*?["):
        return None
    saved = next((each for each in (path, path / source.split) if (each / "state.json").exists()), None)
    found = _saved(saved, count) if saved else [(number, text) for _, number, text in sample(source, count)]
    if not found:
        raise nothing_of(source, count)
    return found


def _saved(folder: Path, count: int) -> list[tuple[int, str]]:
    """Of a `datasets` folder: its first Arrow file, without that library, which takes seconds to import."""
    import pyarrow as pa

    with told(str(folder / "state.json")):
        files = json.loads((folder / "state.json").read_text())["_data_files"]
        first = str(folder / files[0]["filename"])
    with told(first), pa.memory_map(first) as file:
        rows = (row for batch in pa.ipc.open_stream(file) for row in batch.slice(0, count).to_pylist())
        return [(i, json.dumps(row, ensure_ascii=False, default=str)) for i, row in enumerate(islice(rows, count))]
