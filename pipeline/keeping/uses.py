"""What living processes use. A run says it for all of its recipe, also for what it has made already or will make later:
between two of its stages nothing else would.
"""

import json
import os
import platform
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.lease import this_process
from pipeline.store import Store

Name = tuple[str, str]  # stage, and the first 12 digits of the fingerprint: as its folder is called


@contextmanager
def using(store: Store, artifacts: Iterable[Name]) -> Iterator[None]:
    """None of `artifacts` is removed meanwhile. The note falls with the process, as its lock does."""
    folder = store.work / ".uses"
    folder.mkdir(exist_ok=True)
    note = folder / f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
    with FileLock(note.with_suffix(".lock")):
        with settled(store):
            unfinished = note.with_suffix(".unfinished")
            unfinished.write_text(json.dumps({"who": this_process(), "artifacts": sorted(artifacts)}))
            unfinished.rename(note)
        try:
            yield
        finally:
            note.unlink(missing_ok=True)
            note.with_suffix(".lock").unlink(missing_ok=True)


@contextmanager
def settled(store: Store) -> Iterator[None]:
    """Nobody begins to use anything, and nobody else removes anything, as long as it lasts."""
    with store.lock("removal"):
        yield


def in_use(store: Store) -> dict[Name, str]:
    """Artifacts that living processes use or make, and who that is. Notes of killed ones are cleared away."""
    found: dict[Name, str] = {}
    for note in (store.work / ".uses").glob("*.json"):
        if _is_held(lock := note.with_suffix(".lock")):
            try:
                told = json.loads(note.read_text())
            except FileNotFoundError:  # it has ended just now
                continue
            found |= dict.fromkeys(map(tuple, told["artifacts"]), told["who"])
        else:
            note.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    found |= {(stage, name): who for stage, name, who in store.leases()}
    # Workers of a run that was killed may go on writing for a while.
    for lock in (store.work / "train").glob("*/.rank-0.lock"):
        if _is_held(lock):
            found.setdefault(("train", lock.parent.name), "workers of a run that was given up")
    return found


def _is_held(path: Path) -> bool:
    """By a process, which the operating system knows."""
    try:
        with FileLock(path).acquire(blocking=False):
            return False
    except Timeout:
        return True
