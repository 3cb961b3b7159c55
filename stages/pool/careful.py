"""One part in an actor: tried whole, and where that fails, without the rows that make it fail."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from stages.config import Elastic, most
from stages.errors import ContractError, RecipeError, is_disk_full
from stages.pool.attempts import Attempts

Made = TypeVar("Made")


class Computed(NamedTuple):
    healthy: pa.Table  # rows that went through,
    values: Any  # and what came of them, all in one go: so it does not depend on what failed before
    poisonous: pa.Table  # the others,
    errors: list[str]  # and why


def computed(rows: pa.Table, work: Callable[[pa.Table], Any], attempts: Attempts, part: str, section: str) -> Computed:
    """`work` of the rows of `part`. Raises ContractError where it fails though it takes each row.

    Where `work` raises, the process ends: Ray starts its actor anew, and the call again, and the files of `attempts`
    say how far it came. `section` is that of the cluster file.
    """
    errors: dict[int, str] = {}
    if len(attempts.failed("whole")) >= attempts.limit:
        for some in attempts.search(range(len(rows))):
            with _or_die(attempts, attempts.name(some)):
                work(rows.slice(some.start, len(some)))
            attempts.mark_good(some)
        errors = attempts.poisonous(range(len(rows)))
    poisonous = np.isin(np.arange(len(rows)), list(errors))
    name = "rest" if errors else "whole"
    if len(attempts.failed(name)) >= 2 * attempts.limit:
        raise ContractError(
            f"{part} fails as a whole, though each of its rows does not: {attempts.failed(name)[-1]}. Give "
            f"the engine smaller batches ({section}), or look into the log of its actor"
        )
    healthy = rows.filter(pa.array(~poisonous))
    with _or_die(attempts, name):
        values = work(healthy)
    return Computed(healthy, values, rows.filter(pa.array(poisonous)), list(errors.values()))


def started(starts: Attempts, actors: int | Elastic, what: str, make: Callable[[], Made]) -> Made:
    """What `make` makes, an engine: `starts` counts those of all actors that failed since the last one that did not.

    Raises RecipeError where too many have.
    """
    if len(said := starts.failed("start")) >= most(actors) * (1 + starts.limit):
        raise RecipeError(f"the engine for {what} died {len(said)} times while it started: {said[-1]}")
    with starts.attempt("start"):
        made = make()
    starts.forget()
    return made


class Company:
    """Who works in a process at the same time: parts of which nothing has failed. Any other one works alone, so that
    no part is blamed for an engine which another takes down.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._together, self._alone = 0, False

    @contextmanager
    def joined(self, alone: bool) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not (alone and self._together))
            self._together, self._alone = self._together + 1, alone
        try:
            yield
        finally:
            with self._changed:
                self._together, self._alone = self._together - 1, False
                self._changed.notify_all()


@contextmanager
def _or_die(attempts: Attempts, name: str) -> Iterator[None]:
    """An engine that has raised may be broken for good: Ray starts this actor anew, and the call again."""
    try:
        with attempts.attempt(name):
            yield
    except Exception as error:
        if is_disk_full(error):  # then no attempt could be noted, and so none be the last
            raise
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
