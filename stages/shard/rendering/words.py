"""Text -> token ids by a memory of words: what a byte-level BPE tokenizer says, in a fifth of its time.

Such a tokenizer cuts a text into words by a regular expression, and merges bytes within each word alone. So the ids of
a text are those of its words in turn, and words come again. Of ASCII, Latin-1 and the marks of typography, Python's
expressions say the same as those of tokenizers; other text, and other kinds of tokenizer, are left to themselves.
"""

import json
import random
import re
import unicodedata
from collections.abc import Sequence
from itertools import chain
from typing import Any

from tokenizers import pre_tokenizers

_REMEMBERED = 200_000  # words; about 40 MB
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # ByteLevel's own
_BEYOND_ASCII = "".join(map(chr, range(0xA1, 0x100))) + "\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026"
_KNOWN = re.compile(f"[\x00-\x7f{_BEYOND_ASCII}]*")


def words_of(backend: Any) -> "Words | None":
    """None for a tokenizer that this is not true of."""
    try:
        return Words(backend)
    except (ValueError, re.error):
        return None


class Words:
    """`backend`: of a fast tokenizer. Raises ValueError where its ids are not those of words."""

    def __init__(self, backend: Any):
        told = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer else {"type": "none"}
        normalizer = json.loads(backend.normalizer.__getstate__())["type"] if backend.normalizer else "NFC"
        if normalizer != "NFC" or type(backend.model).__name__ != "BPE" or backend.model.dropout:
            raise ValueError("not a byte-level BPE of the text as it stands")
        self._cuts = [re.compile(f"({pattern})", re.ASCII) for pattern in _patterns(told)]
        if any(cut.groups > 1 for cut in self._cuts):
            raise ValueError("an expression with groups")
        added = backend.get_added_tokens_decoder()
        if any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in added.values()):
            raise ValueError("added tokens that take what is around them")
        self._added = {token.content: [number] for number, token in added.items()}
        plain = [token.content for token in added.values() if not token.special]
        self._stand_out = {False: _any_of(self._added), True: _any_of(plain)}  # by `literal`
        self._of_word = _Memory(backend.model)
        self._check(backend)

    def ids(self, text: str, literal: bool = False) -> list[int] | None:
        """Without start and end tokens; None where text has other characters than are known here.

        `literal`: special tokens that it spells are text.
        """
        if not text.isascii() and not _KNOWN.fullmatch(text):
            return None
        stand_out = self._stand_out[literal]
        pieces = [text] if stand_out is None else stand_out.split(text)
        if len(pieces) == 1:
            return self._of_text(text)
        return [i for n, piece in enumerate(pieces) for i in (self._added[piece] if n % 2 else self._of_text(piece))]

    def _of_text(self, text: str) -> list[int]:
        words: Sequence[str] = (text,)
        for cut in self._cuts:
            words = [word for each in words for word in _cut(each, cut)]
        return list(chain.from_iterable(map(self._of_word.__getitem__, words)))

    def _check(self, backend: Any) -> None:
        """Ask both on text in which all kinds of characters meet. Raises ValueError where they differ."""
        chance = random.Random(0)
        bits = [*map(chr, range(128)), *" \n\t'" * 20, *_BEYOND_ASCII, " the", "Don't", "I'LL", "  12345", *self._added]
        texts = ["".join(chance.choices(bits, k=40)) for _ in range(200)]
        for literal in (False, True):
            backend.encode_special_tokens = literal
            made = [each.ids for each in backend.encode_batch(texts, add_special_tokens=False)]
            backend.encode_special_tokens = False
            if made != [self.ids(text, literal) for text in texts]:
                raise ValueError("the tokenizer cuts words otherwise")


def _cut(text: str, pattern: re.Pattern[str]) -> list[str]:
    """With what stands between matches; empty words have no ids."""
    found: list[str] = pattern.findall(text)
    return found if "".join(found) == text else pattern.split(text)


class _Memory(dict[str, list[int]]):
    """Word -> ids; asked of the model once."""

    def __init__(self, model: Any):
        super().__init__({"": []})
        self._model = model
        self._bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def __missing__(self, word: str) -> list[int]:
        if len(self) > _REMEMBERED:
            self.clear()
            self[""] = []
        ((as_bytes, _),) = self._bytes.pre_tokenize_str(word)
        ids = self[word] = [token.id for token in self._model.tokenize(as_bytes)]
        return ids


def _patterns(told: dict[str, Any]) -> list[str]:
    """How a pre-tokenizer cuts, one step after another. Raises ValueError for what is not known."""
    steps = told["pretokenizers"] if told["type"] == "Sequence" else [told]
    found = []
    for step in steps[:-1]:
        match step:
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                found.append(pattern)
            case {"type": "Digits", "individual_digits": one}:
                found.append(r"\p{N}" if one else r"\p{N}+")
            case _:
                raise ValueError(f"a step {step['type']}")
    match steps[-1]:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return [_written_out(pattern) for pattern in [*found, *([_GPT2] if regex else [])]]
    raise ValueError("not of bytes")


def _written_out(pattern: str) -> str:
    """With the characters of Unicode's categories, of those known here. Raises ValueError for other expressions."""
    made, in_brackets = [], False
    for part in re.split(r"(\\p\{\w+\}|\\.|\[|\])", pattern):
        if part.startswith(r"\p{"):
            letters = _members(part[3:-1])
            part = letters if in_brackets else f"[{letters}]" if letters else "(?!)"
        elif part in ("[", "]"):
            in_brackets = part == "["
        made.append(part)
    return "".join(made)


def _members(category: str) -> str:
    if not re.fullmatch("[LMN][a-z]?", category):
        raise ValueError(f"{category} is not known")
    characters = [*map(chr, range(128)), *_BEYOND_ASCII]
    return "".join(each for each in characters if unicodedata.category(each).startswith(category))


def _any_of(tokens: Sequence[str] | dict[str, Any]) -> re.Pattern[str] | None:
    """The longest one that begins at a place is it."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
