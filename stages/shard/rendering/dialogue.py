"""Prompt and completion as the one dialogue that a template writes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from stages.shard.rendering.messages import Blank, Message


class Dialogue(NamedTuple):
    """Of an outline: its messages with sentinels; the completion's begin at `split`."""

    blanks: list[Blank]
    split: int
    continued: bool  # the last message of the prompt is the beginning of the completion's first
    prompted: bool  # the completion begins with the assistant's turn, which the prompt opens
    tools: list[dict[str, Any]] | None
    kwargs: dict[str, Any]
    cut: bool = False  # the last message ends where its text does

    @property
    def messages(self) -> list[Message]:
        return joined([blank.message for blank in self.blanks], self.split, self.continued)


def joined(messages: Sequence[Message], split: int, continued: bool) -> list[Message]:
    """The dialogue. Of a turn that the prompt begins and the completion goes on with, one message is made."""
    if not continued:
        return list(messages)
    begun, rest = messages[split - 1], messages[split]
    return [
        *messages[: split - 1],
        begun | rest | {"content": begun["content"] + rest["content"]},
        *messages[split + 1 :],
    ]
