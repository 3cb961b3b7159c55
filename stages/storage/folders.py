"""Folders of artifacts, on a disk or in object storage."""

import errno
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


def upload(folder: Path, target: Path, last: str) -> bool:
    """Put all files of a folder there; the file `last` when the others are. False where there is another `last`: who
    put it was sooner.
    """
    (system, there), names = system_of(target), list(sizes(folder))
    mine = (folder / last).read_bytes()
    with said(target, "written", f". All of it lies in {folder}: run again, and it is sent"):
        if not system.exists(f"{there}/{last}"):
            others = [name for name in names if name != last]
            system.put([str(folder / name) for name in others], [f"{there}/{name}" for name in others])
            if _created(system, f"{there}/{last}", mine):
                return True
        return bool(system.cat_file(f"{there}/{last}") == mine)  # a request of ours that was thought to be lost


def _created(system: Any, path: str, content: bytes) -> bool:
    """Whether it was put where nothing was, by a conditional put where the storage has one."""
    try:
        system.pipe_file(path, content, mode="create")
    except NotImplementedError:  # fsspec's word where a file system has no such put
        system.pipe_file(path, content)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno == errno.ENOSYS:  # of S3's likes some have none
            system.pipe_file(path, content)
        elif error.errno == errno.EINVAL and system.exists(path):  # s3fs: the precondition failed
            return False
        else:
            raise
    return True
