"""Digests of an artifact's files: noted by who writes a file, while it is in memory, and taken over by the manifest.

A note stands for the file of just this size and time. What was written anew since then, or by nobody who notes, is read
by who finishes the artifact.

And of the manifest that lists them: what is read back is what was written, whoever has had it in between.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from stages.errors import ContractError
from stages.names import inside

NOTES = ".digests"  # in the artifact's folder: a file of lines for each process
_OWN = f"{uuid.uuid4().hex}.jsonl"
Made = TypeVar("Made")
_LAST = b',\n "sha256": "'


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note(path: Path, artifact: Path) -> None:
    """Of a file that is finished and has its name, in an artifact that is being made."""
    key = _key(path, artifact)
    (artifact / NOTES).mkdir(exist_ok=True)
    with (artifact / NOTES / _OWN).open("a") as lines:
        lines.write(json.dumps([*key, sha256_of(path)]) + "\n")


class Noted:
    def __init__(self, artifact: Path):
        self._artifact = artifact
        self._known: dict[tuple[str, int, int], str] = {}
        for path in (artifact / NOTES).glob("*.jsonl"):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):  # the last one of a process that was killed may be torn
                    *key, digest = json.loads(line)
                    self._known[tuple(key)] = digest

    def sha256_of(self, path: Path) -> str:
        return self._known.get(_key(path, self._artifact)) or sha256_of(path)


def _key(path: Path, artifact: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return path.relative_to(artifact).as_posix(), stat.st_size, stat.st_mtime_ns


def written_manifest(fields: Mapping[str, Any]) -> bytes:
    """manifest.json as bytes: its last line is the sha256 of what stands before it.

    That finds damage, not malice: who can write to the root can write a digest too. So names and kinds are checked all
    the same.
    """
    text = json.dumps(fields, indent=1).encode()
    return text.removesuffix(b"\n}") + _LAST + hashlib.sha256(text).hexdigest().encode() + b'"\n}\n'


def read_manifest(kind: type[Made], content: bytes, where: str) -> Made:
    """A dataclass of `kind`, whose `files` have names below their folder. Raises ContractError."""
    remedy = "Put it back as it was, or delete its folder and run again"
    body, last, digest = content.rpartition(_LAST)
    if last:  # manifests of before there was one have none
        content = body + b"\n}"
        if hashlib.sha256(content).hexdigest().encode() + b'"\n}\n' != digest:
            raise ContractError(f"{where} has changed since it was written: its last line is not its sha256. {remedy}")
    try:
        asked: Any = kind
        found: Any = _adapter(asked).validate_python(json.loads(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise ContractError(f"{where} is no manifest: {place}: {first['msg']}. {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise ContractError(f"{where} is no manifest: it is no JSON: {error}. {remedy}") from error
    for record in found.files:
        inside(record.name, where)
    made: Made = found
    return made


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
