"""A JSON array, printed in any way: its elements, one after another, without the whole of it in memory."""

import io
import json
from collections.abc import Iterator

from stages.errors import RecipeError
from stages.shard.reading.opening import opened, sound, told

_CHUNK = 1 << 20
_SPACE = " \t\r\n"
# It only looks for ends: numbers of any length, and what JSON does not know, are for who parses the row.
_decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, strict=False)


def elements(path: str) -> Iterator[str]:
    """The JSON text of each. Raises RecipeError where the array breaks off, or something follows it."""
    with told(path), opened(path) as stream:
        yield from _Elements(path, io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline=""))


class _Elements:
    def __init__(self, path: str, file: io.TextIOWrapper):
        self._path, self._file = path, file
        self._text, self._at, self._gone, self._ended = "", 0, 0, False

    def __iter__(self) -> Iterator[str]:
        self._next_is("[")
        if self._next() == "]":
            self._at += 1
        else:
            while True:
                self._next()
                yield self._element()
                if self._next_is(",", "]") == "]":
                    break
        if self._next():
            raise self._broken("goes on after the array's end")

    def _more(self) -> bool:
        """Twice as much as is held, so that a large element is tried few times."""
        chunk = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self._gone += self._at
        self._text, self._at, self._ended = self._text[self._at :] + chunk, 0, not chunk
        return bool(chunk)

    def _next(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            while self._at < len(self._text):
                if (found := self._text[self._at]) not in _SPACE:
                    return found
                self._at += 1
            if not self._more():
                return ""

    def _next_is(self, *expected: str) -> str:
        found = self._next()
        if found not in expected or not found:
            raise self._broken(f"has {found!r} where {' or '.join(expected)} should be" if found else "breaks off")
        self._at += 1
        return found

    def _element(self) -> str:
        while True:
            try:
                end = _decoder.raw_decode(self._text, self._at)[1]
                if end < len(self._text) or self._ended:  # a number may go on in what was not read yet
                    break
            except (ValueError, RecursionError) as error:
                if self._ended or isinstance(error, RecursionError):
                    raise self._broken(f"is not JSON: {getattr(error, 'msg', 'it is nested too deeply')}") from error
            self._more()
        text, self._at = self._text[self._at : end], end
        return sound(text)

    def _broken(self, what: str) -> RecipeError:
        return RecipeError(
            f"{self._path} begins as a JSON array, and {what} at character {self._gone + self._at}. Mend it, or write "
            "one JSON object a line"
        )
