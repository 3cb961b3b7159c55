"""Which files a source is: one, those of a folder or of a pattern, and of them those of the split that is asked for."""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from stages.errors import RecipeError, printable
from stages.shard.config import Source
from stages.storage import named
from stages.storage.place import is_remote

_KINDS = {
    ".jsonl": "lines", ".ndjson": "lines", ".json": "lines", ".csv": "cells", ".tsv": "cells", ".parquet": "parquet",
    ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
_COMPRESSED = (".gz", ".zst", ".zstd")
_READ = ".jsonl, .json, .ndjson, .csv, .tsv (each also with .gz or .zst), .parquet, .arrow"
SUFFIXES = (*_KINDS, *_COMPRESSED)  # of what is read as a file
_ABOUT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
# As the hub names them.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_KEYWORDS = {word: split for split, words in _SPLITS.items() for word in words}
_NUMBERED = re.compile(r"(.+)-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class File:
    path: str  # on disk, or of object storage
    name: str  # relative to the folder that was named

    @property
    def kind(self) -> str:
        return _KINDS.get(os.path.splitext(_uncompressed(self.name))[1].lower(), "")


def files_of(source: Source) -> list[File]:
    """In a fixed order; none where `source` is no file, folder or pattern. Raises RecipeError for what is not clear."""
    if is_remote(source.source):
        listed = named.entries(source.source)
        found = [File(named.marked(each), each.name) for each in listed]
        return [_known(found[0])] if named.is_one_file(source.source, listed) else _of_split(found, source)
    path = Path(source.source).expanduser()
    if path.is_file():
        return [_known(File(str(path), path.name))]
    if path.is_dir():
        inner = path / source.subset if source.subset else path
        root = inner if inner.is_dir() else path
        found = [
            File(str(each), printable(each.relative_to(path).as_posix()))
            for each in sorted(root.rglob("*"))
            if each.is_file()
        ]
        return _of_split(found, source)
    root, names = matched(str(path))
    return _of_split([_known(File(str(root / name), printable(name))) for name in names], source)


def is_saved_dataset(path: str) -> bool:
    """By `datasets`. Its `dataset_info.json` alone says nothing: other tools have files of that name."""
    return any(os.path.isfile(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json"))


def matched(pattern: str) -> tuple[Path, list[str]]:
    """The folder in front of the first wildcard, and the files that match, relative to it."""
    fixed = Path(pattern)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    found = (Path(each) for each in glob.glob(pattern, recursive=True))
    return fixed, sorted(each.relative_to(fixed).as_posix() for each in found if each.is_file())


def _known(file: File) -> File:
    if not file.kind:
        raise RecipeError(f"shard.source {file.path} is none of {_READ}. Convert it to one of these")
    return file


def _uncompressed(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in _COMPRESSED else name


def _of_split(found: list[File], source: Source) -> list[File]:
    files = [file for file in found if file.kind and not _is_about(file.name)]
    if not files:
        if found or os.path.isdir(source.source):
            raise RecipeError(
                f"shard.source {source.source} is a folder without files of triples in it. Read are {_READ}"
            )
        return []
    splits: dict[str, list[File]] = {}
    for file in files:
        splits.setdefault(split_of_name(file.name), []).append(file)
    wanted = source.split if source.split in splits else _KEYWORDS.get(source.split, source.split)
    if wanted in splits and (len(splits) == 1 or "" not in splits):
        return splits[wanted]
    if source.split == "train" and len(splits) == 1:
        return files
    listed = "; ".join(
        f"{split or 'of no split'}: {', '.join(file.name for file in there[:3])}{', ..' * (len(there) > 3)}"
        for split, there in sorted(splits.items())
    )
    fact = "holds several splits" if len(splits) > 1 else f"has no files of the split {source.split!r}"
    raise RecipeError(
        f"{source.source} {fact} ({listed}). Set shard.split to one of "
        f"{', '.join(filter(None, sorted(splits))) or 'train'}, or name the files that you mean by a pattern"
    )


def split_of_name(name: str) -> str:
    """Of a file, by its name or its folders'; "" where they say none."""
    *folders, last = name.split("/")
    stem = last
    while (cut := os.path.splitext(stem))[1].lower() in (*_KINDS, *_COMPRESSED):
        stem = cut[0]
    if numbered := _NUMBERED.fullmatch(stem):
        return _KEYWORDS.get(numbered[1].lower(), numbered[1])
    for piece in (stem, *reversed(folders)):
        words = re.split(r"[^a-z]+", piece.lower())
        if found := next((_KEYWORDS[word] for word in words if word in _KEYWORDS), ""):
            return found
    return ""


def _is_about(name: str) -> bool:
    return os.path.basename(name) in _ABOUT_DATA or any(piece.startswith(".") for piece in name.split("/"))
