"""A look at the first rows, before anything is started: what `shard` would say of them later, said in a second.

It loads no transformers, and renders no template: it counts the tokens of the texts.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from stages.errors import RecipeError
from stages.model_files import at_hand, has_chat_template
from stages.shard.config import Shape, ShardConfig
from stages.shard.report.contamination import texts_of
from stages.shard.source import slices
from stages.shard.triple import Labelled, Malformed, Triple, detect_shape, parse

ROWS = 20
Count = Callable[[str], int]


@dataclass(frozen=True)
class Look:
    """What was seen of the first rows: a line for people, and what they should know before they start."""

    told: str
    notices: tuple[str, ...] = ()


def look(config: ShardConfig) -> Look:
    """Read, parse and measure the first rows. Raises RecipeError where `shard` would fail on all of them."""
    if not Path(config.source).exists() and not any(character in config.source for character in "*?["):
        return Look(f"{config.source} is not on this machine: no row was looked at")
    sample = _sample(config)
    shape, of_messages = _shape(config, sample)
    count, notices = _tokens(config, of_messages)
    lengths, problems = [], []
    for number, text in sample:
        try:
            lengths.append(max(_length(each, config, count) for each in _parsed(text, shape, config)))
        except _SetAside as error:
            problems.append(f"row {number}: {error}")
    if not lengths:
        raise RecipeError(f"none of the first {len(sample)} rows of {config.source} makes a pair: {problems[0]}")
    told = f"the first {len(sample)} rows of {Path(config.source).name} have the shape {shape}"
    if count:
        told += f"; the longest has about {max(lengths)} tokens, and shard.max_length is {config.max_length}"
    if problems:
        notices.append(f"{len(problems)} of the first {len(sample)} rows make no pair: {problems[0]}")
    return Look(told, tuple(notices))


class _SetAside(ValueError):
    pass


def _parsed(text: str, shape: Shape, config: ShardConfig) -> Sequence[Triple | Labelled]:
    try:
        return [parse(text, shape, config.columns)]
    except Malformed as error:
        raise _SetAside(error) from error


def _length(row: Triple | Labelled, config: ShardConfig, count: Count | None) -> int:
    """Tokens of the longer sequence, without those of a template. Raises _SetAside where nothing can be trained on."""
    completions = [row.completion] if isinstance(row, Labelled) else [row.chosen, row.rejected]
    texts = ["\n".join(texts_of(each)) for each in completions]
    if not isinstance(row, Labelled) and row.chosen == row.rejected:
        raise _SetAside("chosen and rejected are the same text")
    if not all(text.strip() or _calls(each) for text, each in zip(texts, completions, strict=True)):
        raise _SetAside("a completion is empty")
    if not count:
        return 0
    prompt, longest = count("\n".join(texts_of(row.prompt))), max(map(count, texts))
    if prompt + longest > config.max_length and config.truncation == "drop":
        raise _SetAside(f"it has {prompt + longest} tokens or more, and shard.max_length is {config.max_length}")
    return prompt + longest


def _calls(completion: Any) -> bool:
    """A turn that calls tools, and says nothing."""
    return isinstance(completion, list) and any(
        isinstance(each, dict) and each.get("tool_calls") for each in completion
    )


def _tokens(config: ShardConfig, of_messages: bool) -> tuple[Count | None, list[str]]:
    """What counts a text's tokens, if the tokenizer is at hand. Raises RecipeError where it has no chat template."""
    templated = has_chat_template(config.tokenizer)
    if of_messages and templated is False:
        raise RecipeError(
            f"{config.source} holds lists of messages, and the tokenizer of {config.tokenizer} has no chat template to "
            "write them with. Use the tokenizer of a chat model, or triples of plain strings"
        )
    if templated is None and not Path(config.tokenizer).exists():
        return None, [f"the tokenizer of {config.tokenizer} is not on this machine yet: it was not looked at"]
    if (file := at_hand(config.tokenizer, "tokenizer.json")) is None:
        return None, []
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), []


def _sample(config: ShardConfig) -> list[tuple[int, str]]:
    """(row number, JSON text) of the first rows. Raises RecipeError where there is none."""
    path = Path(config.source)
    if (path / "state.json").exists() or (path / config.split / "state.json").exists():
        found = _saved(path if (path / "state.json").exists() else path / config.split)
    else:
        pieces = slices(config.model_copy(update={"limit": min(ROWS, config.limit or ROWS)}), ROWS)
        found = [row for piece in pieces for row in piece.rows()]
    if not found:
        raise RecipeError(f"shard.source {config.source} has no rows")
    return found


def _saved(folder: Path) -> list[tuple[int, str]]:
    """Of a `datasets` folder: its first Arrow file, without that library, which takes seconds to import."""
    import pyarrow as pa

    files = json.loads((folder / "state.json").read_text())["_data_files"]
    with pa.memory_map(str(folder / files[0]["filename"])) as file:
        rows = (row for batch in pa.ipc.open_stream(file) for row in batch.slice(0, ROWS).to_pylist())
        return [(i, json.dumps(row, ensure_ascii=False, default=str)) for i, row in enumerate(islice(rows, ROWS))]


def _shape(config: ShardConfig, sample: list[tuple[int, str]]) -> tuple[Shape, bool]:
    """And whether completions are lists of messages."""
    try:
        row = json.loads(sample[0][1])
    except ValueError as error:
        raise RecipeError(
            f"the first row of {config.source} is not JSON: {error}. One JSON object a line is read"
        ) from error
    if not isinstance(row, dict):
        raise RecipeError(f"the first row of {config.source} is a {type(row).__name__}, not a JSON object with columns")
    detected = detect_shape(row, config.columns, config.source)
    shape = detected if config.shape == "auto" else config.shape
    if shape == "labelled" and config.rows == "pairs":
        raise RecipeError(
            f"{config.source} holds labelled completions, of which no pairs can be made. Set shard.rows: labelled, and "
            "train.loss to one that takes them, as kto does"
        )
    return shape, isinstance(row[config.columns.completion if shape == "labelled" else config.columns.chosen], list)
