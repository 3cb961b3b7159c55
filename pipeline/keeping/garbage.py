"""Which artifacts stay, and why; which may go."""

from collections.abc import Iterable, Iterator

from pipeline.identity import Digests
from pipeline.keeping.inventory import Inventory, Kept, places_in
from pipeline.keeping.uses import Name
from pipeline.plan import identify
from pipeline.recipe.sections import Recipe
from pipeline.store import Store
from stages.errors import ContractError

ENDS = ("train", "evaluate")  # what recipes are run for; all else is on the way to it


def sort_out(
    found: Inventory, recipes: dict[Name, str], now: float, days: float, trainings: bool
) -> tuple[dict[Name, str], list[Kept]]:
    """(what stays, and why; what goes, the newest first).

    To stay there are reasons: a living process uses it, a recipe asks for it (`recipes`: by which one), it is finished
    and the end of a recipe (not with `trainings`), it is younger than `days`. What stays keeps all that it was made
    from, through any number of artifacts. Raises ContractError where an artifact cannot say what that is.
    """
    for kept in found.values():
        if kept.user and kept.state == "partial" and kept.recipe is None:  # by an earlier version, which notes nothing
            raise ContractError(
                f"{kept} is being made by {kept.user}, and does not say from what. Nothing is removed: wait for its end"
            )
    unreadable = [kept for kept in found.values() if kept.state == "unreadable"]
    if unreadable:
        raise ContractError(
            f"the manifest of {unreadable[0]} cannot be read, so that nobody knows what it was made from. Nothing is "
            f"removed. Put its manifest.json back, or remove it: raydpo rm {unreadable[0]}"
        )
    stays: dict[Name, str] = {}
    for key, kept in found.items():
        if kept.user:
            stays[key] = f"in use by {kept.user}"
        elif key in recipes:
            stays[key] = f"of {recipes[key]}"
        elif kept.stage in ENDS and kept.state == "finished" and not trainings:
            stays[key] = "finished"
        elif now - kept.changed < days * 86400:
            stays[key] = f"younger than {days:g} days"
    waiting, by_name = list(stays), {name: (stage, name) for stage, name in found}
    while waiting:
        key = waiting.pop()
        for name in found[key].made_from.values():
            if name in by_name and by_name[name] not in stays:
                stays[by_name[name]] = f"needed by {found[key]}"
                waiting.append(by_name[name])
    goes = [kept for key, kept in found.items() if key not in stays]
    return stays, sorted(goes, key=lambda kept: -kept.changed)


def asked_for(recipe: Recipe, store: Store) -> Iterator[Name]:
    """What a recipe makes, and the artifacts in which models or rows lie that it names. Raises as `identify` does."""
    digests = Digests(store.work / ".digests.json")
    for identity in identify(recipe, digests).values():
        yield identity.stage.name, identity.fingerprint[:12]
        yield from places_in(identity.config.model_dump(mode="json"), store)
    digests.save()


def dependents(of: Iterable[Name], found: Inventory) -> list[Kept]:
    """What was made from these, through any number of artifacts, the newest first; not they themselves."""
    first = set(of)
    waiting, seen = list(first), set(first)
    while waiting:
        for key in found[waiting.pop()].needed_by:
            if key not in seen:
                seen.add(key)
                waiting.append(key)
    return sorted((found[key] for key in seen - first), key=lambda kept: -kept.changed)
