"""Digests that writers note, and that the manifest takes over."""

import hashlib
import json
import os
from pathlib import Path

from stages import digests
from stages.artifacts import list_files


def listed(folder: Path) -> dict[str, str]:
    return {record.name: record.sha256 for record in list_files(folder)}


def test_what_was_noted_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    digests.note(path, tmp_path)
    then = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))  # as if nobody had touched it
    assert listed(tmp_path) == {"a.bin": hashlib.sha256(b"one").hexdigest()}


def test_what_was_written_since_then_or_by_others_is_read(tmp_path: Path) -> None:
    written = {"a.bin": b"one", "b.bin": b"b", "deep/.c.bin": b"c"}
    for name, content in written.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    digests.note(tmp_path / "a.bin", tmp_path)
    (tmp_path / "a.bin").write_bytes(b"other")
    with next((tmp_path / digests.NOTES).iterdir()).open("a") as lines:
        lines.write(json.dumps(["b.bin", 1, 0, "torn"])[:-3])  # of a process that was killed
    expected = written | {"a.bin": b"other"}
    assert listed(tmp_path) == {name: hashlib.sha256(content).hexdigest() for name, content in expected.items()}


def test_the_last_note_of_several_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for content in (b"one", b"other"):
        path.write_bytes(content)
        digests.note(path, tmp_path)
    assert listed(tmp_path) == {"a.bin": hashlib.sha256(b"other").hexdigest()}
