"""An error that no restart mends, kept on disk: Ray starts workers again whatever made them fail."""

import json
import uuid
from contextlib import suppress
from pathlib import Path

from stages.errors import ContractError, MissingArtifact, RecipeError

# As words and not as a pickle: what is read back from a shared disk may not run anything.
_CLASSES = {each.__name__: each for each in (RecipeError, ContractError, MissingArtifact, OSError)}


class Refusal:
    def __init__(self, out: Path):
        self._path = out / ".refusal"

    @property
    def stands(self) -> bool:
        return self._path.exists()

    def keep(self, error: BaseException) -> None:
        """One of the errors for users (errors.is_for_users): its class and what it says."""
        name = type(error).__name__ if type(error).__name__ in _CLASSES else OSError.__name__  # is_disk_full
        unfinished = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex[:8]}")
        with suppress(OSError):  # on a full disk; then it is kept by nobody, and restarts come to an end by themselves
            unfinished.write_text(json.dumps({"class": name, "arguments": list(error.args)}, default=str))
            unfinished.rename(self._path)

    def reraise(self) -> None:
        if self.stands:
            kept = json.loads(self._path.read_text())
            raise _CLASSES[kept["class"]](*kept["arguments"])

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)
