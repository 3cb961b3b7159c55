"""Places in object storage: UPaths (universal_pathlib, over any file system of fsspec). Such a place has the methods of
pathlib.Path, and stands wherever one is read from; but it is no Path, and no path that other libraries open.

Storage that is slow, throttles or has faults is asked again by its own client, with pauses that grow: of S3 for some
two minutes a request, or as AWS_MAX_ATTEMPTS says; of others as long as their clients do.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from stages.errors import ContractError, RecipeError

_ATTEMPTS = 9  # the pause after attempt n is half of 2^(n-1) s on average


def is_remote(name: str) -> bool:
    return "://" in name


def open_root(url: str) -> Path:
    """The place of `url` ("s3://bucket/folder"). Raises RecipeError where it cannot be written."""
    try:
        try:
            _write(place(url, patient=False))  # a mistake in its name is told soon
        except Exception as error:
            if not _is_its_own(error):
                raise
            _write(place(url))
        return cast(Path, place(url))
    except Exception as error:  # of the backend's own kinds
        raise RecipeError(f"the root {url} cannot be written: {_told(error)}") from error


def _write(root: Any) -> None:
    probe = root / ".writable"
    probe.write_bytes(b"")
    probe.unlink()


def _is_its_own(error: Exception) -> bool:
    """The storage answers, and that it has a fault: another time it may have none."""
    response = getattr(error.__cause__ or error, "response", {})
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= 500


def place(url: str, patient: bool = True) -> Any:
    from upath import UPath

    options: dict[str, Any] = {"use_listings_cache": False}  # what other processes write is seen
    if patient and url.startswith(("s3://", "s3a://")) and "AWS_MAX_ATTEMPTS" not in os.environ:
        options["config_kwargs"] = {"retries": {"mode": "legacy", "total_max_attempts": _ATTEMPTS}}
    return UPath(url, **options)


def system_of(place: Any) -> tuple[Any, str]:
    """The file system of fsspec, and the path in it."""
    return place.fs, place.path.rstrip("/")


@contextmanager
def said(name: object, what: str = "read", remedy: str = "") -> Iterator[None]:
    """Faults of storage as RecipeError."""
    try:
        yield
    except (RecipeError, ContractError):
        raise
    except Exception as error:  # of the backend's own kinds
        raise RecipeError(f"{name} cannot be {what}: {_told(error)}{remedy}") from error


def _told(error: Exception) -> str:
    if isinstance(error, ImportError):  # fsspec names the package
        return f"{error}. The package for it has to be installed, on all nodes"
    return (
        f"{type(error).__name__}: {error}. Look at its name, at the credentials and the endpoint in the environment "
        "(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ..), and whether the package for it is installed"
    )
