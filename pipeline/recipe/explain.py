"""What is wrong with a recipe or a cluster file, in one message a mistake."""

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel

from pipeline.recipe.sections import Recipe
from stages.train.objective.named.loss import BY_NAME


def explain(section: type[BaseModel], problem: Any) -> str:
    key, kind = _walk(section, problem["loc"])[0], problem["type"]
    if kind == "union_tag_invalid":
        return f"{key}: there is no loss {problem['ctx']['tag']}; {_hint(problem['ctx']['tag'], list(BY_NAME))}"
    if kind == "extra_forbidden":
        return f"{key}: no such key; {_hint(str(problem['loc'][-1]), *_keys(section, problem['loc'][:-1]))}"
    given = "" if kind in ("missing", "value_error") else f" (given: {problem['input']!r})"
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}{given}"


def _hint(name: str, known: list[str], deeper: Sequence[str] = ()) -> str:
    nearest = difflib.get_close_matches(name, [*known, *deeper], n=1, cutoff=0.5)
    return f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(known)}"


def _walk(section: type[BaseModel] | None, location: tuple[Any, ...]) -> tuple[str, type[BaseModel] | None]:
    """The key that a location of pydantic's means, and the section it names, if it names one.

    Where there are several kinds of a section, as of losses, the location has the kind's name too, which is no key.
    """
    keys: list[str] = []
    for name in location:
        if section is None and name in BY_NAME:
            section = BY_NAME[name]
            continue
        keys.append(str(name))
        field = section.model_fields.get(name) if section else None
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if _is_section(kind)] if field else []
        section = kinds[0] if len(kinds) == 1 else None
    return ".".join(keys), section


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _keys(section: type[BaseModel], location: tuple[Any, ...]) -> tuple[list[str], list[str]]:
    """Keys of the section at a location, and those of its loss, if it has one."""
    place = _walk(section, location)[1]
    assert place is not None, location
    keys = list(place.model_fields)
    deeper = {f"loss.{key}" for kind in BY_NAME.values() for key in kind.model_fields} if "loss" in keys else set()
    return [*keys, "model"] if place is Recipe else keys, sorted(deeper)
