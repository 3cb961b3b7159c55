"""What a row is rendered to."""

from collections.abc import Sequence
from typing import NamedTuple

from stages.shard.triple import Rejected

_MAX_CHARACTERS = 10_000_000  # of one text: the tokens of more would not fit beside those of other rows


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
    unended: int = 0  # how many completions have no end, because they were cut when they were sampled


def check(pieces: Sequence[Piece]) -> None:
    """Raises Rejected for what no tokenizer should be given."""
    for text, *_ in pieces:
        if len(text) > _MAX_CHARACTERS:
            raise Rejected("too_long", f"a text of {len(text):,} characters; up to {_MAX_CHARACTERS:,} are tokenized")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                code = f"U+{ord(text[error.start]):04X}"
                raise Rejected("malformed", f"half a character (the lone surrogate {code}) stands in a text") from error
