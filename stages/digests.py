"""Digests of an artifact's files: noted by who writes a file, while it is in memory, and taken over by the manifest.

A note stands for the file of just this size and time. What was written anew since then, or by nobody who notes, is read
by who finishes the artifact.
"""

import hashlib
import json
import uuid
from pathlib import Path

NOTES = ".digests"  # in the artifact's folder: a file of lines for each process
_OWN = f"{uuid.uuid4().hex}.jsonl"


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
