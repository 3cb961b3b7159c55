"""Who makes an artifact, for all nodes that share a folder: a file that its holder touches as long as it lives.

A lock of the operating system is that of one machine, or of what a network file system makes of it. All that is asked
for here is that a link is made once, and that an open file shows its time of change (NFS: close-to-open consistency).
No two clocks are compared: who waits looks whether the file still changes, and who looks but once asks the file system
for the time that it would give to a file.
"""

import json
import os
import platform
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

from stages.errors import ContractError

SECONDS = 60.0  # without a beat, and its holder is taken for dead; one that is seen to have died is so at once
_LONG = 600.0  # the same, for who looks but once
_BEATS = 6  # in that time
_POLL = 0.5  # seconds between two looks of who waits


class Lease:
    """Held from `acquire`, or a `take` that succeeds, to `release`. `path` is the file; its folder is there.

    `told`: plain data, for `holder`.
    """

    def __init__(self, path: Path, seconds: float = SECONDS, told: dict[str, Any] | None = None):
        self.path, self.seconds, self._told = path, seconds, told or {}
        self._token = uuid.uuid4().hex
        self._ended = Event()

    def acquire(self, notify: Callable[[str], None]) -> None:
        """Wait until nobody else holds it; `notify` is told who does."""
        seen, since, told = None, 0.0, False
        while not self.take():
            now = _read(self.path)
            if now is None:  # given back in between
                continue
            if now != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > self.seconds:
                self._clear(now[0])
                seen = None  # where that fails, it is looked at as long again
                continue
            if not told:
                notify(now[0]["who"])
            told = True
            time.sleep(_POLL)

    def take(self) -> bool:
        """Hold it, if nobody does who has not been seen to die. ContractError where the folder takes no links."""
        now = _read(self.path)
        if now is not None and _has_died(now[0]):
            self._clear(now[0])
        if taken := self._create():
            Thread(target=self._beat, daemon=True).start()
        return taken

    def check(self) -> None:
        """Raises ContractError where another process has taken over: this one stood still for too long."""
        now = _read(self.path)
        if now is None or now[0]["token"] != self._token:
            other = "another run" if now is None else now[0]["who"]
            raise ContractError(
                f"{self.path.stem} was taken over by {other}, as this process gave no sign of life for "
                f"{self.seconds:g} s. What it made is kept; leave it to that run"
            )

    def release(self) -> None:
        self._ended.set()
        now = _read(self.path)
        if now is not None and now[0]["token"] == self._token:
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """False where it is there. Whoever reads it finds all of it."""
        mine: dict[str, Any] = {"token": self._token, "who": this_process()}
        mine |= {"process": os.getpid(), "started": _started(os.getpid()), "world": _world(), **self._told}
        written = self.path.with_name(f".{self._token}")
        written.write_text(json.dumps(mine))
        try:
            os.link(written, self.path)
        except FileExistsError:
            return False
        except OSError as error:
            raise ContractError(
                f"{self.path.parent} takes no links, by which runs keep out of each other's way: {error.strerror}. Put "
                "cluster.root, or cluster.work where there is one, on a file system with hard links"
            ) from error
        finally:
            written.unlink()
        return True

    def _clear(self, dead: dict[str, Any]) -> None:
        """Remove the file of a dead holder; of those who want to, one does."""
        mark = self.path.with_name(f".{dead['token']}.dead")
        try:
            mark.mkdir()
        except FileExistsError:
            with suppress(OSError):
                if time.time() - mark.stat().st_mtime > 2 * self.seconds:  # who made it has died as well
                    mark.rmdir()
            time.sleep(_POLL)
            return
        now = _read(self.path)
        if now is not None and now[0]["token"] == dead["token"]:
            self.path.unlink(missing_ok=True)
        mark.rmdir()

    def _beat(self) -> None:
        while not self._ended.wait(self.seconds / _BEATS):
            with suppress(OSError):  # a touch more or less; a lease that is lost shows in `check`
                os.utime(self.path)


def this_process() -> str:
    return f"process {os.getpid()} on {platform.node()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def holder(path: Path) -> dict[str, Any] | None:
    """What the holder of this lease says of itself, "who" it is at least; None where nobody holds it who lives."""
    now = _read(path)
    if now is None or _has_died(now[0]):
        return None
    elsewhere = now[0]["world"] != _world()
    return None if elsewhere and _now(path.parent) - now[1] > _LONG * 1e9 else now[0]


def _read(path: Path) -> tuple[dict[str, Any], int] | None:
    """What it says, and when it was touched."""
    try:
        with path.open() as file:
            return json.load(file), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _now(folder: Path) -> int:
    """By the clock that dates its files, which is a file server's where there is one; nanoseconds."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _has_died(lease: dict[str, Any]) -> bool:
    """Known of processes of this machine, and of this container."""
    return lease["world"] == _world() and lease["started"] != _started(lease["process"])


def _world() -> str:
    """In which a process number means one process: a boot of a machine, and a namespace in it."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux: what is on other machines, and here, is known by its silence
        return uuid.uuid4().hex


def _started(process: int) -> str:
    """Clock ticks since the boot; "" of one that does not live, or has ended and is not waited for."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
