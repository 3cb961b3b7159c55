"""Where a key belongs that stands where there is none, and what a loss is called here."""

import difflib
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from pipeline.recipe.sections import Cluster, Recipe
from pipeline.recipe.synonyms import LOSSES, OTHERWISE, SAME
from stages.errors import RecipeError
from stages.train.objective.named.loss import ALIASES, BY_NAME

NEAR, REMOTE = 0.75, 0.5  # of difflib's ratio, which is 1 for the same word


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The kinds of section that a field can be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_of(part)]


@cache
def keys(file: type[BaseModel]) -> dict[str, None]:
    """All keys of a recipe or a cluster file, in order, as `--set` takes them; those of every loss under train.loss."""

    def below(section: type[BaseModel], place: str) -> Iterator[str]:
        for name, field in section.model_fields.items():
            yield place + name
            for inner in sections_of(field.annotation):
                yield from below(inner, f"{place}{name}.")

    return dict.fromkeys(below(file, "cluster.") if file is Cluster else [*below(file, ""), "model"])


def check_is(file: type[BaseModel], content: dict[str, Any], path: Any) -> None:
    """Raises RecipeError where a file has keys of the other kind alone: the two are easily exchanged."""
    recipe, cluster = {*Recipe.model_fields, "model"}, set(Cluster.model_fields)
    own, other = (recipe - cluster, cluster - recipe) if file is Recipe else (cluster - recipe, recipe - cluster)
    if own & content.keys() or not (found := [key for key in content if key in other]):
        return
    if file is Recipe:
        raise RecipeError(
            f"{path} is a cluster file, by its key {found[0]}, and a recipe belongs here. Name both: raydpo plan "
            f"RECIPE --cluster {path}"
        )
    raise RecipeError(
        f"{path} is a recipe, by its key {found[0]}, and --cluster takes a cluster file, which says where: see "
        f"configs/clusters. A recipe stands alone: raydpo plan {path}"
    )


def of_loss(name: str) -> str:
    """What to say to a name that no loss has."""
    spelt = name.lower().replace("-", "_")
    if spelt in LOSSES:
        return LOSSES[spelt]
    letters = [name for name in (*BY_NAME, *ALIASES) if sorted(name) == sorted(spelt)]  # two that changed places
    nearest = letters or difflib.get_close_matches(spelt, [*BY_NAME, *ALIASES], n=1, cutoff=REMOTE)
    return f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join([*BY_NAME, *ALIASES])}"


def of_key(place: str, name: str, siblings: list[str]) -> tuple[str, list[str]]:
    """What to say to a key that its section, at `place`, does not have; and which keys are meant, in full.

    First what it is called here, in its section and then anywhere; then where we have a key of this name; then the
    nearest spelling, in its section before elsewhere.
    """
    spelt = name.lower().replace("-", "_")
    if name.startswith("cluster.") and name in _all():
        return f"it is {_in_its_file(name)}", [name]
    if "." in name:
        section, _, last = name.rpartition(".")
        return f"dots are for --set; in a file it is {last}, in the section {section}", [place + name]
    if place + name in _all():
        return _of_other_losses(name, siblings), []
    inner = place.removeprefix("cluster.")
    known = _known(f"{inner}{spelt}") or _below(place, spelt) or _known(spelt) or _elsewhere(place, spelt)
    if known:
        return known
    for cutoff, names in ((NEAR, siblings), (NEAR, _names()), (REMOTE, siblings)):
        if nearest := difflib.get_close_matches(spelt, names, n=1, cutoff=cutoff):
            if names is siblings:
                return f"did you mean {nearest[0]}?", [place + nearest[0]]
            return _known(nearest[0]) or _elsewhere(place, nearest[0]) or ("", [])
    return f"known: {', '.join(siblings)}", []


def _all() -> dict[str, None]:
    return keys(Recipe) | keys(Cluster)


def _names() -> list[str]:
    """What can be meant anywhere: the last words of our keys, and what others call them."""
    ours = [key.rpartition(".")[2] for key in _all()]
    return list(dict.fromkeys(name for name in [*ours, *SAME, *OTHERWISE] if "." not in name))


def _known(name: str) -> tuple[str, list[str]] | None:
    if name in OTHERWISE:
        return OTHERWISE[name], []
    return _told([SAME[name]]) if name in SAME else None


def _below(place: str, name: str) -> tuple[str, list[str]] | None:
    """`train.beta` is `train.loss.beta`."""
    inside = place not in ("", "cluster.")
    return _told([key for key in _all() if inside and key.startswith(place) and key.endswith(f".{name}")])


def _elsewhere(place: str, name: str) -> tuple[str, list[str]] | None:
    """In the same section of the other file, or else anywhere."""
    inner = place.removeprefix("cluster.")
    other = f"{inner}{name}" if inner != place else f"cluster.{place}{name}"
    return _told([other] if other in _all() else [key for key in _all() if f".{key}".endswith(f".{name}")])


def _told(found: list[str]) -> tuple[str, list[str]] | None:
    """Of several keys those that are nearest to the top."""
    depths = [key.removeprefix("cluster.").count(".") for key in found]
    meant = [key for key, depth in zip(found, depths, strict=True) if depth == min(depths)]
    return (f"it is {' or '.join(map(_in_its_file, meant))}", meant) if meant else None


def _in_its_file(key: str) -> str:
    inner = key.removeprefix("cluster.")
    return f"{key}, in the recipe" if inner == key else f"{inner}, in the cluster file (--set {key}=..)"


def _of_other_losses(name: str, siblings: list[str]) -> str:
    owners = [loss for loss, kind in BY_NAME.items() if name in kind.model_fields]
    shown = ", ".join(owners if len(owners) < 6 else [*owners[:5], ".."])
    told = f"known: {', '.join(siblings)}"
    return f"{told}; {name} is a key of {shown}" if owners else f"{told}; {name} is a key of others of its kind"
