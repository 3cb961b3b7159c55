"""What a row is rendered to."""

from typing import NamedTuple


class Piece(NamedTuple):
    """A run of text that is tokenized by itself."""

    text: str
    trained: bool = False
    literal: bool = False  # no part of it may become a control token
    opens: bool = False  # a plain prompt: the tokenizer's own start token, if it adds one, stands before it


class Rendered(NamedTuple):
    """A prompt, of which nothing is trained, and one or two completions."""

    prompt: list[Piece]
    completions: list[list[Piece]]
    spells_control: bool  # text of the row spells a control token
