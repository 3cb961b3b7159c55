"""The errors a user can cause. Each is a standard type too, and picklable, because they cross Ray."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard


class RecipeError(ValueError):
    """A recipe, cluster file or command line asks for something that cannot be."""


class ContractError(ValueError):
    """Files break what their artifact promises: schema, coverage, content, or whom they belong to."""


class MissingArtifact(FileNotFoundError):
    """A stage's input has not been made yet."""


class Paused(Exception):
    """A stage has stopped where it was told to; called again without that, it goes on."""


def printable(text: str) -> str:
    """The same, with lone surrogates, which JSON and names of files may have and no stream takes, as escapes."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def is_disk_full(error: BaseException | None) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_for_users(error: BaseException | None) -> bool:
    """Whether people have to mend it, and no other attempt would end otherwise."""
    return type(error) in (RecipeError, ContractError, MissingArtifact) or is_disk_full(error)


@contextmanager
def out_of_ray() -> Iterator[None]:
    """Raise a user's error that happened in a Ray worker as itself, without the wrapping Ray puts around it."""
    try:
        yield
    except Exception as error:
        found = _user_error(error)
        if found is None or found is error:
            raise
        raise found from None


def _user_error(error: BaseException | None) -> BaseException | None:
    """Ray Data keeps the original in `cause` and `__cause__`, Ray Train in `worker_failures` by rank."""
    if error is None or is_for_users(error):
        return error
    inner = [getattr(error, "cause", None), error.__cause__, getattr(error, "_base_exc", None)]
    inner += getattr(error, "worker_failures", {}).values()
    return next((found for each in inner if each is not error and (found := _user_error(each))), None)
