"""Triples and models in object storage, by name: marked with what lies there, and fetched once a node, into a folder
that is named by its identity.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from stages.errors import RecipeError
from stages.names import inside
from stages.storage.place import place, said, system_of

_MARKED = re.compile(r"(.*)#([0-9a-f]{16})")


class Entry(NamedTuple):
    """A file in object storage."""

    url: str
    name: str  # relative to the folder that was named
    identity: str  # ETag and size, or what else the storage knows of its content


def entries(url: str) -> list[Entry]:
    """The files of a name: itself, those under a folder, or those that match a pattern.

    Raises RecipeError where there is none, they cannot be listed, or they are not those of the mark in the name.
    """
    name, mark = unmarked(url)
    with said(name):
        system, there = system_of(place(name))
        if any(character in name for character in "*?["):
            found = system.glob(there, detail=True)
            root = re.split(r"[*?\[]", there)[0].rpartition("/")[0]
        else:
            found = system.find(there, detail=True)
            root = there if there not in found else there.rpartition("/")[0]
        listed = [
            Entry(
                system.unstrip_protocol(path),
                inside(path.removeprefix(f"{root}/"), name),
                _identity(system, path, info),
            )
            for path, info in sorted(found.items())
            if info["type"] == "file" and not path.endswith("/")
        ]
    if not listed:
        raise RecipeError(f"there is nothing at {name}. Look at the names of the bucket and of the key")
    if mark is not None and _mark(listed) != mark:
        raise RecipeError(f"{name} has changed since this run was planned. Run again")
    return listed


def identity_of(url: str, only: Callable[[str], bool] | None = None) -> tuple[str, str]:
    """(name, identity) of a name's files, or of those that `only` takes. The name has a mark of all that lies there, by
    which a node knows what it has already, and whether it has changed.
    """
    listed = entries(url)
    taken = [entry for entry in listed if only is None or only(entry.name)]
    return f"{unmarked(url)[0]}#{_mark(listed)}", f"stored:{_digest(taken)}"


def marked(entry: Entry) -> str:
    """The name of one of the files, with its mark."""
    return f"{entry.url}#{_mark([entry._replace(name=entry.url.rpartition('/')[2])])}"


def unmarked(url: str) -> tuple[str, str | None]:
    """(name, its mark)."""
    match = _MARKED.fullmatch(url)
    return (match[1], match[2]) if match else (url, None)


def is_one_file(url: str, listed: list[Entry]) -> bool:
    path = unmarked(url)[0].split("://", 1)[1].strip("/")
    return len(listed) == 1 and listed[0].url.split("://", 1)[1].strip("/") == path


def fetched(url: str, only: Callable[[str], bool] | None = None) -> Path:
    """A copy on this node of a file, or of the files of a folder: made once, by whoever comes first.

    `only` those files of a folder whose names it takes. Raises RecipeError where they are not there any more.
    """
    name, mark = unmarked(url)
    if mark is not None and only is None and (known := copies() / mark).exists():
        return _copied(name, known)
    listed = entries(url)
    taken = [entry for entry in listed if only is None or only(entry.name)]
    target = copies() / _mark(taken)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            unfinished = target.with_name(f"{target.name}.{os.getpid()}")
            shutil.rmtree(unfinished, ignore_errors=True)
            for entry in taken:
                (unfinished / entry.name).parent.mkdir(parents=True, exist_ok=True)
                with said(entry.url):
                    system, there = system_of(place(entry.url))
                    system.get_file(there, str(unfinished / entry.name))
            if is_one_file(name, taken):
                (unfinished / ".one").touch()
            unfinished.rename(target)
    return _copied(name, target)


def _copied(name: str, target: Path) -> Path:
    return target / name.rstrip("/").rpartition("/")[2] if (target / ".one").exists() else target


def copies() -> Path:
    """Where a node keeps what it has fetched: under XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raydpo" / "objects"


def read_text(folder: str, name: str) -> str:
    """A small file of a folder there."""
    named = unmarked(folder)[0]
    with said(f"{named}/{name}"):
        return (place(named) / name).read_text()


def is_there(url: str) -> bool:
    try:
        return bool(entries(url))
    except RecipeError:
        return False


def _identity(system: Any, path: str, info: dict[str, Any]) -> str:
    """An ETag of storage that has them, another checksum, or the content."""
    known = next(
        (info[key] for key in ("ETag", "etag", "md5Hash", "content_md5", "md5", "crc32c") if info.get(key)), None
    )
    if known is None:
        digest = hashlib.sha256()
        with system.open(path, "rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
        known = digest.hexdigest()
    text = known.hex() if isinstance(known, bytes | bytearray) else str(known)
    return f"{text.strip(chr(34))}:{info['size']}"


def _digest(listed: list[Entry]) -> str:
    return hashlib.sha256(json.dumps([[entry.name, entry.identity] for entry in listed]).encode()).hexdigest()


def _mark(listed: list[Entry]) -> str:
    return _digest(listed)[:16]
