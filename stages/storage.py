"""Object storage, where finished artifacts may lie: what is done there otherwise than on a disk.

A place there is an UPath (universal_pathlib, over any file system of fsspec). It has the methods of pathlib.Path, and
stands wherever one is read from; but it is no Path, and no path that other libraries open.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from stages.errors import RecipeError


def is_remote(name: str) -> bool:
    return "://" in name


def open_root(url: str) -> Path:
    """The place of `url` ("s3://bucket/folder"). Raises RecipeError where it cannot be written."""
    try:
        from upath import UPath

        root = cast(Path, UPath(url, use_listings_cache=False))  # what other processes write is seen
        probe = root / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except Exception as error:  # of the backend's own kinds
        raise RecipeError(
            f"the root {url} cannot be written: {type(error).__name__}: {error}. Look at its name, at the credentials "
            "and the endpoint in the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ..), and whether the package "
            "for it is installed"
        ) from error
    return root


def sizes(folder: Path) -> dict[str, int]:
    """Name, relative to `folder`, and bytes of all files under it; one request in object storage."""
    if isinstance(folder, Path):
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    system, there = _remote(folder)
    found = system.find(there, detail=True)
    return {name.removeprefix(f"{there}/"): each["size"] for name, each in found.items()}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """What pyarrow reads: the path, or an open file in object storage."""
    if isinstance(path, Path):
        yield path
        return
    with path.open("rb") as file:
        yield file


def download(folder: Path, target: Path) -> None:
    (system, there), names = _remote(folder), list(sizes(folder))
    system.get([f"{there}/{name}" for name in names], [str(target / name) for name in names])


def upload(folder: Path, target: Path, last: str) -> None:
    """Put all files of a folder there; the file `last` when the others are."""
    (system, there), names = _remote(target), list(sizes(folder))
    for each in ([name for name in names if name != last], [last]):
        system.put([str(folder / name) for name in each], [f"{there}/{name}" for name in each])


def _remote(place: Any) -> tuple[Any, str]:
    """The file system of fsspec, and the path in it."""
    return place.fs, place.path.rstrip("/")
