"""Parts of the training set on a node's own disk, in a form that its workers map into memory and share."""

import getpass
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from filelock import FileLock


class NodeCache:
    """Arrow files, each made once a node from files elsewhere, by whichever of the node's workers comes first."""

    def __init__(self, folder: str | None):
        self.folder = Path(folder or Path(tempfile.gettempdir()) / f"raydpo-cache-{getpass.getuser()}")

    def path(self, name: str, sources: list[Path]) -> Path:
        """Where the table `name` is kept that is made of `sources`: other content there is another name here."""
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime) for path in sources]
        return self.folder / f"{hashlib.sha256(repr((name, stats)).encode()).hexdigest()[:32]}.arrow"

    def table(self, path: Path, make: Callable[[], pa.Table]) -> pa.Table:
        """The table of `path`, which `make` gives if no worker has written it yet.

        Its columns lie in the file: memory is used for what is looked at, and shared.
        """
        try:
            return _open(path)
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _write(make().combine_chunks(), path)
            return _open(path)

    @staticmethod
    def drop(path: Path) -> None:
        """Workers that have it open keep it until they let go."""
        path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)


def _write(table: pa.Table, path: Path) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}")  # of one process: a lock that was dropped may be held twice
    with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    unfinished.rename(path)


def _open(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
