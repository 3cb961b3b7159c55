"""JSON lines: a large file in ranges of bytes that end at line ends."""

import os
from collections.abc import Iterator
from itertools import pairwise

from stages.shard.reading.opening import opened, told


def ranges(path: str, size: int) -> list[tuple[int, int]]:
    """(start, stop) in bytes, of about `size` each; every line is in one of them."""
    end = os.path.getsize(path)
    cuts = [0]
    with told(path), open(path, "rb") as file:
        while cuts[-1] + size < end:
            file.seek(cuts[-1] + size)
            file.readline()
            cuts.append(file.tell())
    return list(pairwise([*cuts, end] if cuts[-1] < end else cuts))


def lines(path: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(number from the range's first line, line) of all lines that are not blank."""
    with told(path), opened(path) as stream:
        if start:
            stream.seek(start)
        position = stream.tell() if stop is not None else 0
        for number, line in enumerate(stream):
            if stop is not None and position >= stop:
                return
            position += len(line)
            if not line.isspace():
                yield number, line.rstrip(b"\r\n")


def count(path: str, start: int = 0, stop: int | None = None) -> tuple[int, int]:
    """(lines, those that are not blank)."""
    found = rows = position = 0
    with told(path), opened(path) as stream:
        if start:
            stream.seek(start)
        position = stream.tell() if stop is not None else 0
        for line in stream:
            if stop is not None and position >= stop:
                break
            position += len(line)
            found += 1
            rows += not line.isspace()
    return found, rows
