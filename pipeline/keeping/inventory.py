"""What a store holds: every artifact, finished or begun, what it was made from, and who needs it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.graph import STAGES
from pipeline.keeping.uses import Name, in_use
from pipeline.store import MAKING, Store
from stages.artifacts import MANIFEST, Manifest
from stages.digests import read_manifest
from stages.errors import ContractError, RecipeError
from stages.storage import folders

_HEX = re.compile(r"[0-9a-f]{12}")


@dataclass
class Kept:
    """One artifact, by its manifest; files are not looked at, which `raydpo verify` does."""

    stage: str
    name: str  # first 12 digits of its fingerprint
    state: Literal["finished", "partial", "unreadable"]  # unreadable: its manifest is
    bytes: int
    changed: float  # when it was finished or last written to, seconds since 1970
    recipe: str | None = None  # by which it was made, where that is known
    made_from: dict[str, str] = field(default_factory=dict)  # argument -> the first 12 digits of a fingerprint
    needed_by: list[Name] = field(default_factory=list)  # what was made from it
    user: str | None = None  # a living process

    @property
    def key(self) -> Name:
        return self.stage, self.name

    def __str__(self) -> str:
        return f"{self.stage}/{self.name}"


Inventory = dict[Name, Kept]


def inventory(store: Store) -> Inventory:
    """Of all stages, in their order, the newest first."""
    found: Inventory = {}
    for path, content in folders.read_all(store.root, f"*/*/{MANIFEST}").items():
        if key := _key(path):
            found[key] = _finished(*key, content, store)
    for stage in STAGES:
        for draft in (store.work / stage).glob("*/"):
            if _HEX.fullmatch(draft.name) and (stage, draft.name) not in found:
                found[stage, draft.name] = _partial(stage, draft, store)
    users = in_use(store)
    for key, kept in found.items():
        kept.user = users.get(key)
    by_name = {name: (stage, name) for stage, name in found}
    for key, kept in found.items():
        for name in dict.fromkeys(kept.made_from.values()):
            if name in by_name:
                found[by_name[name]].needed_by.append(key)
    order = list(STAGES)
    return dict(sorted(found.items(), key=lambda each: (order.index(each[1].stage), -each[1].changed)))


def find(text: str, found: Inventory) -> Kept:
    """The artifact of `STAGE/NAME`, of NAME alone or of its beginning, or of its folder. Raises RecipeError."""
    *_, stage, name = ("", *text.rstrip("/").split("/"))
    fitting = [
        kept
        for kept in found.values()
        if name and kept.name.startswith(name) and ("/" not in text or kept.stage == stage)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise RecipeError(f"{text} may be {', '.join(map(str, fitting[:5]))}. Give more of its name")
    raise RecipeError(f"there is no artifact {text} among the {len(found)} of this store. raydpo ls names them")


def places_in(value: Any, store: Store) -> Iterator[Name]:
    """Artifacts of this store in whose folders lie files that `value`, of plain data, names."""
    if isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from places_in(inner, store)
    elif isinstance(value, str):
        for root in (store.root, store.work, store.copies):
            if value.startswith(f"{root}/") and (key := _key(value.removeprefix(f"{root}/"))):
                yield key


def _key(path: str) -> Name | None:
    """Of a file by its path in the store."""
    stage, _, rest = path.partition("/")
    name = rest.partition("/")[0]
    return (stage, name) if stage in STAGES and _HEX.fullmatch(name) else None


def _finished(stage: str, name: str, content: bytes, store: Store) -> Kept:
    try:
        manifest = read_manifest(Manifest, content, f"{stage}/{name}/{MANIFEST}")
        told = manifest.provenance
        return Kept(
            stage, name, "finished", sum(each.bytes for each in manifest.files),
            datetime.fromisoformat(told["finished"]).timestamp(), told.get("recipe"),
            _made_from(manifest.payload, told.get("named"), store),
        )  # fmt: skip
    except (ContractError, ValueError, KeyError, TypeError, AttributeError):
        return Kept(stage, name, "unreadable", 0, 0.0)


def _partial(stage: str, draft: Path, store: Store) -> Kept:
    size = sum(folders.sizes(draft).values())
    changed = max(path.stat().st_mtime for path in (draft, *draft.glob("*")))
    try:
        noted = json.loads((draft / MAKING).read_text())
    except (FileNotFoundError, ValueError):  # begun by an earlier version, or killed in the first moment
        return Kept(stage, draft.name, "partial", size, changed)
    made_from = _made_from(noted["payload"], noted["origin"]["named"], store)
    return Kept(stage, draft.name, "partial", size, changed, noted["origin"]["recipe"], made_from)


def _made_from(payload: dict[str, Any], named: Any, store: Store) -> dict[str, str]:
    """Its inputs, and policies of this store that its recipe names as models."""
    found = {argument: fingerprint[:12] for argument, fingerprint in payload["inputs"].items()}
    for key, value in (named or {}).items():
        found |= {f"{key}.{i}" if i else key: name for i, (_, name) in enumerate(places_in(value, store))}
    return found
