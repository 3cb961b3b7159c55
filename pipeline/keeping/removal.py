"""Takes artifacts out of a store: at once for who looks, then byte by byte."""

import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.keeping.inventory import Inventory, Kept, inventory
from pipeline.store import Store
from stages.artifacts import MANIFEST
from stages.errors import RecipeError


def remove(store: Store, chosen: Callable[[Inventory], Sequence[Kept]]) -> list[Kept]:
    """Remove what `chosen` picks of all there is, in its order, and return it.

    It picks while nobody begins to use anything; what a living process uses is refused all the same, with RecipeError
    and before anything is removed. Who is killed here leaves no half of an artifact that is taken for a whole.
    """
    with store.settled():
        picked = chosen(inventory(store))
        for kept in picked:
            if kept.user:
                raise RecipeError(f"{kept} is used by {kept.user}. Wait for its end, or stop it")
        for kept in picked:
            _take_away(store, kept)
    shutil.rmtree(store.work / ".removed", ignore_errors=True)  # of earlier ones that were killed too
    return list(picked)


def _take_away(store: Store, kept: Kept) -> None:
    """What lies in object storage is deleted here; what lies on a disk is put aside."""
    lease = store.lease(kept.stage, kept.name)
    if not lease.take():  # by an earlier version, which says nothing in `uses`
        raise RecipeError(f"{kept} is being made by another run. Wait for its end, or stop it")
    try:
        aside = store.work / ".removed"
        aside.mkdir(exist_ok=True)
        folder, draft = store.folder(*kept.key), store.draft(*kept.key)
        for place in dict.fromkeys((folder, draft, store.copies.joinpath(*kept.key))):
            if not place.exists():
                continue
            if isinstance(place, Path):
                place.rename(aside / f"{kept.stage}-{kept.name}-{uuid.uuid4().hex[:8]}")
            else:
                (place / MANIFEST).unlink(missing_ok=True)
                place.rmdir(recursive=True)
    except OSError as error:
        raise RecipeError(f"{kept} cannot be removed: {error}. Look at the rights of its folder") from error
    finally:
        lease.release()
