"""Folders of artifacts, on a disk or in object storage."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.names import inside
from stages.storage.place import said, system_of


def sizes(folder: Path) -> dict[str, int]:
    """Name, relative to `folder`, and bytes of all files under it; one request in object storage."""
    if isinstance(folder, Path):
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    with said(folder):
        system, there = system_of(folder)
        found = system.find(there, detail=True)
    return {inside(name.removeprefix(f"{there}/"), str(folder)): each["size"] for name, each in found.items()}


def read_all(folder: Path, pattern: str) -> dict[str, bytes]:
    """Name, relative to `folder`, and content of all small files under it that match; in object storage together."""
    if isinstance(folder, Path):
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob(pattern)}
    with said(folder):
        system, there = system_of(folder)
        names = system.glob(f"{there}/{pattern}")
        found = system.cat(names) if names else {}
    return {name.removeprefix(f"{there}/"): content for name, content in found.items()}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """What pyarrow reads: the path, or an open file in object storage."""
    if isinstance(path, Path):
        yield path
        return
    with path.open("rb") as file:
        yield file


def download(folder: Path, target: Path) -> None:
    (system, there), names = system_of(folder), list(sizes(folder))
    with said(folder):
        system.get([f"{there}/{name}" for name in names], [str(target / name) for name in names])


def upload(folder: Path, target: Path, last: str) -> None:
    """Put all files of a folder there; the file `last` when the others are."""
    (system, there), names = system_of(target), list(sizes(folder))
    with said(target, "written", f". All of it lies in {folder}: run again, and it is sent"):
        for each in ([name for name in names if name != last], [last]):
            system.put([str(folder / name) for name in each], [f"{there}/{name}" for name in each])
