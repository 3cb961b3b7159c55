"""Notices that training stands still, and says where each worker is."""

import json
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOOKS = 10  # in the time that a step may take


class Watch:
    """A thread of one rank. Where a beat fails to come for `seconds`, it writes this rank's stack beside the others'.

    Its file, `rank-<n>.json`, goes when the rank moves again. A rank that has no file while others have is stopped, or
    stuck outside of Python.
    """

    def __init__(self, folder: Path, rank: int, world: int, seconds: float):
        self._path = folder / f"rank-{rank}.json"
        self._world, self._seconds = world, seconds
        self._step, self._since = 0, time.monotonic()
        self._main = threading.get_ident()
        self._ended = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.beat()
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self._path.unlink(missing_ok=True)

    def beat(self, step: int | None = None) -> None:
        """A micro-batch begins: of `step`, or of the evaluation after it."""
        self._step = self._step if step is None else step
        self._since = time.monotonic()

    def _look(self) -> None:
        while not self._ended.wait(self._seconds / _LOOKS):
            standing = time.monotonic() - self._since > self._seconds
            if standing and not self._path.exists():
                unfinished = self._path.with_suffix(".tmp")
                unfinished.write_text(json.dumps({"world": self._world, "step": self._step, "stack": self._stack()}))
                unfinished.rename(self._path)
            elif not standing:
                self._path.unlink(missing_ok=True)

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._main)
        return "".join(traceback.format_stack(frame)) if frame else "the thread has ended"


def say_where(folder: Path) -> str | None:
    """What the files of a stall say, one rank after another; None where there are none."""
    found = {}
    for path in folder.glob("rank-*.json"):
        with suppress(FileNotFoundError):  # this rank has just moved
            found[int(path.stem.removeprefix("rank-"))] = json.loads(path.read_text())
    said = []
    for rank in range(max((each["world"] for each in found.values()), default=0)):
        if rank in found:
            said.append(f"rank {rank} is in step {found[rank]['step']}:\n{found[rank]['stack'].rstrip()}")
        else:
            said.append(f"rank {rank} says nothing: it is stopped, or stuck outside of Python; others may wait for it")
    return "\n".join(said) or None
