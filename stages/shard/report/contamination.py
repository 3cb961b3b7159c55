"""Rows that hold what a model is to be examined with: n-grams of words, looked up in those of evaluation files.

The n-grams are exact, 13 words as in the report on GPT-3 (2005.14165, appendix C), and those of more than ten examples
are boilerplate, as there. A MinHash, which compares whole texts, would not find a question inside a longer prompt.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import RecipeError
from stages.shard.config import ShardConfig
from stages.shard.hashes import U64, mixed, of_ngrams, of_text
from stages.shard.reading.opening import told
from stages.shard.reading.survey import slices
from stages.shard.triple import Labelled, Triple

WORDS = 13
FEWEST = 5  # words of a whole text that count, where it has less than WORDS
BOILERPLATE = 10  # examples of a file
# Letters and digits between what is none; a character each where words are not parted: kana, Chinese, Thai, Hangul.
_UNPARTED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNPARTED}]|[^\W{_UNPARTED}]+")


class Evaluations:
    """The n-grams of evaluation files, 8 bytes each."""

    def __init__(self, paths: Iterable[str]):
        """Raises RecipeError where a file cannot be read, or holds no text."""
        self.grams = {path: _grams_of_file(path) for path in paths}

    def find(self, row: Triple | Labelled) -> str | None:
        """What of the row stands in which file, or None."""
        for text in texts_of(vars(row)):
            words = _words(text)
            hashes = _grams(words)
            for path, known in self.grams.items():
                at = np.flatnonzero(_among(hashes, known))
                if len(at):
                    found = _WORD.findall(text.lower())[at[0] : at[0] + WORDS]
                    return f"{len(at)} n-grams of it stand in {Path(path).name}: {' '.join(found)!r}"
        return None


@lru_cache(maxsize=1)  # once a worker process
def evaluations(paths: tuple[str, ...]) -> Evaluations:
    return Evaluations(paths)


def texts_of(value: Any) -> Iterator[str]:
    """All text in a row: strings, however deep, but for names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            if key not in ("role", "tools", "chat_kwargs"):
                yield from texts_of(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from texts_of(each)


def _grams_of_file(path: str) -> np.ndarray:
    """Sorted and unique."""
    examples = [
        np.unique(np.concatenate([np.zeros(0, U64), *(_grams(_words(text)) for text in texts_of(row))]))
        for row in _rows(path)
    ]
    grams, counts = np.unique(np.concatenate([np.zeros(0, U64), *examples]), return_counts=True)
    grams = grams[counts <= BOILERPLATE]
    if not len(grams):
        raise RecipeError(f"shard.decontaminate: {path} holds no text of {FEWEST} words or more to look for")
    return grams


def _rows(path: str) -> Iterator[Any]:
    """Of a file that `shard` reads, or the lines of a text."""
    if path.endswith((".txt", ".md")):
        with told(path):
            lines = Path(path).read_text(errors="replace").splitlines()
        yield from lines
        return
    for piece in slices(ShardConfig(source=path, tokenizer="none"), 1000):
        for number, text in piece.rows():
            try:
                yield json.loads(text)
            except (ValueError, RecursionError) as error:  # also of numbers and nesting that Python does not read
                raise RecipeError(f"shard.decontaminate: row {number} of {path} is not JSON: {error}") from error


def _words(text: str) -> np.ndarray:
    found = _WORD.findall(text.lower())
    return np.fromiter(map(of_text, found), U64, len(found))


def _grams(words: np.ndarray) -> np.ndarray:
    """Hashes of its n-grams in order; a text of less than FEWEST words has none, of less than WORDS itself."""
    if len(words) < FEWEST:
        return np.zeros(0, U64)
    return of_ngrams(mixed(words), np.array([0, len(words)]), WORDS)[0]


def _among(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[at] == hashes
