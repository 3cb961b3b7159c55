"""A file as a stream of bytes: decompressed whatever its name says, without a byte order mark."""

import gzip
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from stages.errors import RecipeError

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MARK = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_PROBLEM = re.compile(r"\((not UTF-8: [^)]*|\d+ cells, and \d+ columns)\) ")


@contextmanager
def told(path: str) -> Iterator[None]:
    """Whatever goes wrong while a file is read is its user's to mend: say which file it is."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # of zlib, pyarrow, csv, datasets, ..: a damaged file raises almost anything
        fact = str(error).splitlines()[0].rstrip(".") if str(error) else ""
        raise RecipeError(
            f"{path} cannot be read: {type(error).__name__}: {fact[:300]}. Is it whole, and of the kind that its "
            "name says?"
        ) from error


@contextmanager
def opened(path: str) -> Iterator[io.BufferedReader]:
    """From behind the byte order mark, if there is one. Raises RecipeError where the text is UTF-16 or UTF-32."""
    with open(path, "rb") as file:
        stream: Any = file
        start = file.peek(4)[:4]
        if start.startswith(GZIP):
            stream = io.BufferedReader(gzip.GzipFile(fileobj=file))
        elif start == ZSTD:
            stream = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))
        start = stream.peek(4)[:4]
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(start) > 1 and 0 in start[:2]):
            raise RecipeError(f"{path} is not text in UTF-8 but in UTF-16 or UTF-32. Save it as UTF-8")
        if start.startswith(_MARK):
            stream.read(len(_MARK))
        yield stream


def is_compressed(path: str) -> bool:
    with open(path, "rb") as file:
        start = file.read(4)
    return start.startswith(GZIP) or start == ZSTD


def is_array(path: str) -> bool:
    """Whether the first character, blanks apart, opens an array."""
    with told(path), opened(path) as stream:
        while chunk := stream.read(1 << 12):
            if first := chunk.lstrip(_BLANK)[:1]:
                return first == b"["
    return False


def text_of(line: bytes) -> str:
    """Bytes that are no UTF-8 make a row that is no JSON, and is set aside: none is trained on with holes in it."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        return f"(not UTF-8: {error.reason} at byte {error.start}) {line.decode(errors='replace')}"


def problem_of(text: str) -> str | None:
    """What is wrong with a row, where that stands before it in brackets: no JSON begins so."""
    found = _PROBLEM.match(text)
    return found[1] if found else None


def sound(text: str) -> str:
    """The same of text that was decoded with `surrogateescape`."""
    return text if text.isascii() else text_of(text.encode(errors="surrogateescape"))
