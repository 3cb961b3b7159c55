"""Pieces of text -> token ids, many at once."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from stages.shard.rendering.control import Control
from stages.shard.rendering.words import words_of

# The encoder remembers the tokens of words; tokenizers' own default of 10,000 words is full after a thousand long rows,
# and stays as it is then. 200,000 words take a fifth less time on reviews of films, and 20 MB.
_REMEMBERED_WORDS = 200_000
_ANCHOR = "\n"


class Run(NamedTuple):
    """A text and how it is tokenized. Equal runs have equal ids, wherever they stand."""

    text: str
    literal: bool = False  # no part of it becomes a control token
    opens: bool = False  # the tokenizer's own start and end tokens are added
    follows: bool = False  # other text stands before it


class Encoder:
    """Of one tokenizer, by its Rust backend where it has one."""

    def __init__(self, tokenizer: Any, control: Control):
        self._tokenizer, self._control = tokenizer, control
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._backend is not None:
            self._backend.no_truncation()  # tokenizer.json may say otherwise
            self._backend.no_padding()
            if hasattr(self._backend.model, "_resize_cache"):  # of byte-pair models
                self._backend.model._resize_cache(_REMEMBERED_WORDS)
        self._words = None if self._backend is None else words_of(self._backend)
        self._control_ids = {tokenizer.convert_tokens_to_ids(token) for token in control.tokens}
        self._anchor = self._batch([_ANCHOR])[0]
        # SentencePiece's kind writes a blank before every text, and so inside a dialogue too.
        ids = [*chain.from_iterable(self._batch(["a:", "b"]))]
        self._prefixes = tokenizer.decode(ids, clean_up_tokenization_spaces=False) != "a:b"

    def ids(self, runs: Sequence[Run]) -> list[list[int]]:
        """Of each run. Equal ones are tokenized once, and may share a list."""
        found: dict[Run, list[int]] = {}
        groups: dict[tuple[bool, bool, bool], dict[Run, None]] = {}
        for run in runs:
            groups.setdefault(run[1:], {})[run] = None
        for (literal, opens, follows), group in groups.items():
            texts = [run.text for run in group]
            made = self._following(texts, literal) if follows and self._prefixes else self._batch(texts, literal, opens)
            found.update(zip(group, map(self._without_control, texts, made) if literal else made, strict=True))
        return [found[run] for run in runs]

    def _following(self, texts: list[str], literal: bool) -> list[list[int]]:
        """After an anchor, whose tokens are taken off again."""
        made = self._batch([_ANCHOR + text for text in texts], literal)
        at = len(self._anchor)
        return [
            ids[at:] if ids[:at] == self._anchor else self._batch([text], literal)[0]
            for text, ids in zip(texts, made, strict=True)
        ]

    def _without_control(self, text: str, ids: list[int]) -> list[int]:
        """Added tokens that are not marked special are matched all the same; not so in halves."""
        if self._control_ids.isdisjoint(ids):
            return ids
        return [*chain.from_iterable(self._batch(self._control.halves(text), literal=True))]

    def _batch(self, texts: list[str], literal: bool = False, opens: bool = False) -> list[list[int]]:
        if self._backend is None:
            made = self._tokenizer(texts, add_special_tokens=opens, split_special_tokens=literal)["input_ids"]
            return [list(ids) for ids in made]
        if self._words is None or (opens and self._backend.encode("").ids):
            return _asked(self._backend, texts, literal, opens)
        known = [self._words.ids(text, literal) for text in texts]
        others = [text for text, ids in zip(texts, known, strict=True) if ids is None]
        made = iter(_asked(self._backend, others, literal, opens))
        return [next(made) if ids is None else ids for ids in known]


def _asked(backend: Any, texts: list[str], literal: bool, opens: bool) -> list[list[int]]:
    backend.encode_special_tokens = literal
    try:
        return [made.ids for made in backend.encode_batch_fast(texts, add_special_tokens=opens)]
    finally:
        backend.encode_special_tokens = False
