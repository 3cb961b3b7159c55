"""What a row of a source asks. It is read as `shard` reads it."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from stages.errors import RecipeError
from stages.sample.config import SampleConfig
from stages.shard.config import ShardConfig
from stages.shard.shapes.cells import text_or_messages
from stages.shard.shapes.known import PROMPTS, prompt_column
from stages.shard.shapes.messages import decoded, dialogue, messages_of, refuse_media
from stages.shard.shapes.paired import shape_of_pair, triple_of
from stages.shard.shapes.row import Malformed, Rejected, Text


def as_shard(config: SampleConfig) -> ShardConfig:
    """The rows read, and the prompts written, as `shard` does."""
    same = ("source", "subset", "split", "columns", "where", "limit", "tokenizer", "chat")
    length = config.max_prompt_length + 1024  # and an answer
    return ShardConfig(**{name: getattr(config, name) for name in same}, max_length=length, truncation="drop")


@contextmanager
def told_of_sample() -> Iterator[None]:
    """The rooms of `shard` name the fields of its section in what they raise, and here they are those of `sample`."""
    try:
        yield
    except RecipeError as error:
        fields = "|".join(SampleConfig.model_fields)
        raise RecipeError(re.sub(rf"\bshard\.(?=({fields})\b)", "sample.", str(error))) from error


def is_chat(config: SampleConfig, has_template: bool) -> bool:
    """Whether a text is a message of a user, and not gone on with."""
    return config.text == "chat" or (config.text == "auto" and has_template)


def prompt_of(text: str, config: SampleConfig, chat: bool) -> Text:
    """What a row asks: its prompt, a dialogue up to the last answer in it, or what its two completions begin with.

    Raises Rejected where it asks nothing that can be read.
    """
    try:
        return _said(_prompt(text, config, chat))
    except RecursionError as error:
        raise Malformed("nested too deeply") from error


def _prompt(text: str, config: SampleConfig, chat: bool) -> Text:
    """With the answers at its end, if there are any."""
    try:
        row = json.loads(text)
    except ValueError as error:
        raise Malformed(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise Malformed(f"not a JSON object but a {type(row).__name__}")
    refuse_media(row)
    if row.get(config.chat.tools_column):
        raise Rejected("unsupported", f"column {config.chat.tools_column!r}: no tools are handed to models that sample")
    name = prompt_column(row, config.columns, PROMPTS)
    if row.get(name) is not None:
        value = decoded(text_or_messages(row, name))
        if isinstance(value, str):
            return dialogue(value) if chat and value.strip() else value
        return messages_of(value, name)
    shape = shape_of_pair(row, config.columns)
    if shape is None:
        raise Malformed(f"it has no column {config.columns.prompt!r}; it has {', '.join(map(repr, row)) or 'none'}")
    return triple_of(row, shape, config.columns, chat).prompt


def _said(prompt: Text) -> Text:
    """Without answers at its end."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise Rejected("empty", "the prompt is empty")
        return prompt
    while prompt and prompt[-1]["role"] == "assistant":
        prompt = prompt[:-1]
    if not prompt:
        raise Rejected("empty", "there is no message before the answer")
    return prompt
