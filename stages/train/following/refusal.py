"""An error that no restart mends, kept on disk: Ray starts workers again whatever made them fail."""

import pickle
import uuid
from contextlib import suppress
from pathlib import Path


class Refusal:
    def __init__(self, out: Path):
        self._path = out / ".refusal"

    @property
    def stands(self) -> bool:
        return self._path.exists()

    def keep(self, error: BaseException) -> None:
        unfinished = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex[:8]}")
        with suppress(OSError):  # on a full disk; then it is kept by nobody, and restarts come to an end by themselves
            unfinished.write_bytes(pickle.dumps(error))
            unfinished.rename(self._path)

    def reraise(self) -> None:
        if self.stands:
            error: BaseException = pickle.loads(self._path.read_bytes())
            raise error

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)
