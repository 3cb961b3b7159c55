"""What living processes use. A run says it for all of its recipe, also for what it has made already or will make later:
between two of its stages nothing else would.
"""

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from pipeline.lease import Lease, holder
from pipeline.store import Store

Name = tuple[str, str]  # stage, and the first 12 digits of the fingerprint: as its folder is called


@contextmanager
def using(store: Store, artifacts: Iterable[Name]) -> Iterator[None]:
    """None of `artifacts` is removed meanwhile. The note is a lease: it falls with the process, or its node."""
    note = Lease(store.uses / f"{uuid.uuid4().hex}.json", told={"artifacts": sorted(artifacts)})
    with store.settled():
        note.take()
    try:
        yield
    finally:
        note.release()


def in_use(store: Store) -> dict[Name, str]:
    """Artifacts that living processes use or make, and who that is. Notes of dead ones are cleared away."""
    found: dict[Name, str] = {}
    for note in store.uses.glob("[!.]*.json"):
        if (told := holder(note)) is None:
            note.unlink(missing_ok=True)
        else:
            found |= dict.fromkeys(map(tuple, told["artifacts"]), told["who"])
    found |= {(stage, name): who for stage, name, who in store.leases()}
    # Workers of a run that was killed may go on writing for a while.
    for lock in (store.work / "train").glob("*/.rank-0.lock"):
        try:
            FileLock(lock).acquire(blocking=False).lock.release()
        except Timeout:
            found.setdefault(("train", lock.parent.name), "workers of a run that was given up")
    return found
