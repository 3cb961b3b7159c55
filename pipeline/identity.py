"""External names -> what they mean: a local file or folder is its content, a hub name an immutable revision."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from stages.digests import sha256_of
from stages.errors import RecipeError
from stages.model_files import base_of, check_tokenizer, is_tokenizer_file, split_revision
from stages.shard.reading.files import SUFFIXES, matched
from stages.storage import named
from stages.storage.place import is_remote

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Digests:
    """Content digests of local files, remembered by path, size and time of change, so that `plan` is quick."""

    def __init__(self, cache: Path | None):
        self._cache = cache
        self._known: dict[str, str] = json.loads(cache.read_text()) if cache and cache.exists() else {}
        self._changed = False
        self.files: set[Path] = set()  # all that were asked of, as they were named

    def of_file(self, path: Path) -> str:
        """Raises RecipeError where it cannot be read."""
        self.files.add(path)
        try:
            stat = path.stat()
            key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
            if key not in self._known:
                self._known[key] = sha256_of(path)
                self._changed = True
        except OSError as error:
            raise RecipeError(f"{path} cannot be read: {error.strerror}. Make it readable, or name another") from error
        return self._known[key]

    def of_files(self, folder: Path, files: list[Path]) -> str:
        listing = [[path.relative_to(folder).as_posix(), self.of_file(path)] for path in sorted(files)]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    def save(self) -> None:
        if self._cache and self._changed:
            unfinished = self._cache.with_name(f"{self._cache.name}.{os.getpid()}")
            unfinished.write_text(json.dumps(self._known))
            unfinished.rename(self._cache)


def model_identity(name: str, digests: Digests, field: str, tokenizer_only: bool = False) -> tuple[str, str]:
    """(name to load, identity) of a model. With `tokenizer_only`, its weights are not part of the identity."""
    if is_remote(name):
        return named.identity_of(name, _is_of_tokenizer if tokenizer_only else None)
    folder = _path(name, field)
    if folder.is_dir():
        files = [p for p in folder.rglob("*") if p.is_file() and not _hidden(p, folder)]
        if tokenizer_only:
            files = [p for p in files if is_tokenizer_file(p.name)]
        if (base := base_of(str(folder))) != str(folder):
            return str(folder.resolve()), _adapted(base, folder, files, digests, field, tokenizer_only)
        if not files:
            check_tokenizer(name, field)
            raise RecipeError(f"{field}: the folder {name} holds no files of a model. Name one that has config.json")
        return str(folder.resolve()), f"sha256:{digests.of_files(folder, files)}"
    return _hub_identity(name, "model", field)


def _adapted(base: str, folder: Path, files: list[Path], digests: Digests, field: str, tokenizer_only: bool) -> str:
    """Of an adapter and its base model; of the tokenizer of one of them."""
    if tokenizer_only and any(path.name == "tokenizer_config.json" for path in files):
        return f"sha256:{digests.of_files(folder, files)}"
    _, identity = model_identity(base, digests, f"{field}: the base model of the adapter {folder}", tokenizer_only)
    return identity if tokenizer_only else f"sha256:{digests.of_files(folder, files)} on {identity}"


def file_identity(name: str, digests: Digests, field: str) -> tuple[str, str]:
    """(path to read, identity) of a file that a recipe names beside its sets and models."""
    path = _path(name, field)
    if not path.is_file():
        raise RecipeError(f"{field}: there is no file {name} (looked from {Path.cwd()})")
    return str(path.resolve()), f"sha256:{digests.of_file(path)}"


def source_identity(name: str, digests: Digests, field: str) -> tuple[str, str]:
    """(name to read, identity) of a set of triples: a file, a folder, a glob pattern, or a hub name; in object storage
    the name has a mark of what lies there.
    """
    if is_remote(name):
        return named.identity_of(name)
    path = _path(name, field)
    if path.is_file():
        return str(path.resolve()), f"sha256:{digests.of_file(path)}"
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.is_file() and not _hidden(p, path)]
        return str(path.resolve()), f"sha256:{digests.of_files(path, files)}"
    if any(character in name for character in "*?["):
        root, names = matched(str(path))
        if not names:
            raise RecipeError(f"{field}: no file matches {name} (looked from {Path.cwd()})")
        pattern = root.resolve() / path.relative_to(root)
        return str(pattern), f"sha256:{digests.of_files(root, [root / each for each in names])}"
    return _hub_identity(name, "dataset", field)


def _path(name: str, field: str) -> Path:
    """Raises RecipeError where the system would not even look for it."""
    if not name.strip():
        raise RecipeError(f"{field} is empty. Name a file or a folder, or org/name of a hub")
    try:
        path = Path(name).expanduser()
        path.is_file()
    except (OSError, RuntimeError) as error:  # too long, in a folder that is closed to us, of a user there is not
        told = getattr(error, "strerror", None) or error
        raise RecipeError(f"{field}: {name[:200]} cannot be looked for: {told}. Name another") from error
    return path


def _is_of_tokenizer(name: str) -> bool:
    return is_tokenizer_file(name.rpartition("/")[2])


def _hidden(path: Path, folder: Path) -> bool:
    return any(piece.startswith(".") for piece in path.relative_to(folder).parts)


def _hub_identity(name: str, kind: str, field: str) -> tuple[str, str]:
    base, revision = split_revision(name)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) or base.endswith(SUFFIXES):
        raise RecipeError(
            f"{field}: there is no file or folder {name} (looked from {Path.cwd()}). Name one that is there, or one of "
            "the hub: org/name"
        )
    if not (revision and _COMMIT.fullmatch(revision)):
        revision = _commit_of(base, revision or "main", kind, field)
    return f"{base}@{revision}", f"hub:{base}@{revision}"


def _commit_of(base: str, revision: str, kind: str, field: str) -> str:
    from huggingface_hub import HfApi, constants  # slow to import, and only hub names need it

    remembered = Path(constants.HF_HUB_CACHE) / f"{kind}s--{base.replace('/', '--')}" / "refs" / revision
    try:
        sha: Any = HfApi().repo_info(base, revision=revision, repo_type=kind, timeout=10).sha
    except Exception as error:
        if remembered.exists():  # downloaded before, and the hub is out of reach now
            return remembered.read_text().strip()
        raise RecipeError(
            f"{field}: {base} is no local path (looked from {Path.cwd()}), and the hub did not answer for this "
            f"{kind} at revision {revision}: {type(error).__name__}: {str(error).splitlines()[0]} Check the name and "
            f"the network; or fetch it elsewhere, and name its folder: hf download {base} --repo-type {kind} "
            f"--local-dir FOLDER"
        ) from error
    return str(sha)
