"""What is wrong with a recipe or a cluster file, in one message a mistake."""

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from pipeline.recipe.hints import of_key, of_loss, sections_of
from pipeline.recipe.sections import Cluster, Recipe
from stages.judge.config import JudgeConfig
from stages.train.objective.named.loss import BY_NAME

Key = tuple[Any, ...]
SHOWN = 80  # characters of a bad value


def explain(
    file: type[BaseModel], problems: Sequence[Any], content: dict[str, Any], spread: Mapping[Key, Key]
) -> list[str]:
    """A line for each key that is wrong, as it was typed.

    `content` is what the file says; `spread` has the key that was typed for those that were filled in from it.
    """
    found: dict[Key, list[Any]] = {}
    for problem in problems:
        key = _walk(file, problem["loc"], content)[0]
        if problem["type"] == "invalid_key":
            key = (*key[:-1], problem["input"])
        found.setdefault(spread.get(key, key), []).append(problem)
    said: dict[Key, str] = {}
    meant: list[str] = []  # by keys that there are not
    for key, same in found.items():
        # Where a value may be of several kinds, what is wrong within one kind says more than that it is no other.
        if not any(len(other) > len(key) and other[: len(key)] == key for other in found):
            said[key], instead = _say(file, key, same, content)
            meant += instead
    misspelt = [key for key in found if found[key][0]["type"] == "missing" and _is_meant(_in_full(file, key), meant)]
    return [f"{_dotted(key)}: {text}" for key, text in said.items() if key not in misspelt]


def explain_truths(content: Any, checked: Any, key: Key = ()) -> list[str]:
    """A line for each true or false that pydantic took for a number, as Python does."""
    if isinstance(content, bool) and not isinstance(checked, bool):
        return [f"{_dotted(key)}: Input should be a number (given: {content})"]
    if isinstance(content, dict):
        values = (
            checked if isinstance(checked, dict) else getattr(checked, "__dict__", {})
        )  # of keys for others, or of a section
        parts: list[Any] = [(name, part, values.get(name)) for name, part in content.items()]
    elif isinstance(content, list):
        values = getattr(checked, "terms", checked)  # of a sum, or of any other list
        parts = [(place, part, values[place]) for place, part in enumerate(content)]
    else:
        return []
    return [line for name, part, value in parts for line in explain_truths(part, value, (*key, name))]


def _say(file: type[BaseModel], key: Key, same: list[Any], content: dict[str, Any]) -> tuple[str, list[str]]:
    """What is wrong with one key; if it is none, the keys that may have been meant as well."""
    by_kind = {problem["type"]: problem for problem in reversed(same)}
    if "extra_forbidden" in by_kind:
        section = _walk(file, by_kind["extra_forbidden"]["loc"][:-1], content)[1]
        siblings = [*section.model_fields, *(["model"] if section is Recipe else [])]
        hint, meant = of_key(_in_full(file, (*key[:-1], "")), str(key[-1]), siblings)
        return f"no such key; {hint}", meant
    if "value_error" in by_kind:
        return by_kind["value_error"]["msg"].removeprefix("Value error, "), []
    for problem in same:
        if problem["type"] == "invalid_key" or problem["loc"][-1] == "[key]":
            read_as = _short(repr(problem["input"]))
            return f"YAML reads this key as {read_as}, and keys are words; put it in quotes, or leave it out", []
    texts = list(dict.fromkeys(_text(problem, _walk(file, problem["loc"], content)[1]) for problem in same))
    others = "".join(f", or {text.removeprefix('Input should be ')}" for text in texts[1:])
    hidden = same[0]["type"] in ("missing", "union_tag_invalid") or "env_vars" in key  # where keys and passwords may be
    given = "" if hidden else f" (given: {_short(repr(same[0]['input']))})"
    return texts[0] + others + given, []


def _text(problem: Any, kind: Any) -> str:
    """`kind` is what can stand there."""
    match problem["type"]:
        case "union_tag_invalid" | "union_tag_not_found" if problem["loc"][0] == "judge":
            known = ", ".join(str(_tag(each)) for each in get_args(get_args(JudgeConfig)[0]))
            named = problem["ctx"].get("tag")
            return f"there is no judge {_short(named)}; known: {known}" if named else f"give it a name: {known}"
        case "union_tag_invalid":
            return f"there is no loss {_short(problem['ctx']['tag'])}; {of_loss(problem['ctx']['tag'])}"
        case "model_attributes_type":
            return "Input should be a loss: its name, a section with its name and fields, or a list of losses to sum"
        case "model_type":
            return f"Input should be a section with keys of its own, such as {', '.join([*kind.model_fields][:3])}"
    return str(problem["msg"])


def _walk(kind: Any, location: Key, content: Any) -> tuple[Key, Any]:
    """The key that a location of pydantic's means, and what can stand there.

    Where there may be several kinds, as of losses, the location has the kind's name too, which is no key.
    """
    keys: list[Any] = []
    for name in location:
        kinds = _kinds(kind)
        if len(kinds) > 1:
            kind = _chosen(kinds, str(name))
            continue
        if name == "[key]":  # it is the key that is wrong, not its value
            continue
        kind = _part(kinds[0], name) if kinds else None
        if not (name == "terms" and isinstance(content, list)):  # a list of losses, which is read as a section
            keys.append(name)
            content = content.get(name) if isinstance(content, dict) else None
    kinds = _kinds(kind)
    return tuple(keys), kinds[0] if len(kinds) == 1 else kind


def _kinds(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    return [] if annotation in (None, type(None)) else [annotation]


def _chosen(kinds: list[Any], name: str) -> Any:
    """The kind that pydantic calls `name`: after its loss, its class, or what it holds."""
    if BY_NAME.get(name) in kinds:
        return BY_NAME[name]
    named = {_tag(kind): kind for kind in kinds}
    if name in named:
        return named[name]
    return next((kind for kind in kinds if name == str(kind) or (sections_of(kind) and kind.__name__ in name)), None)


def _tag(kind: Any) -> str | None:
    """The one name that a section can have."""
    field = kind.model_fields.get("name") if sections_of(kind) else None
    return get_args(field.annotation)[0] if field and get_args(field.annotation) else None


def _part(kind: Any, name: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(name)
        return field.annotation if field else None
    return get_args(kind)[0] if get_origin(kind) in (list, tuple) else None


def _in_full(file: type[BaseModel], key: Key) -> str:
    """As `--set` takes it, but for places in a list."""
    names = [str(name) for name in key if not isinstance(name, int) and name != "terms"]
    return ".".join(["cluster", *names] if file is Cluster else names)


def _is_meant(key: str, meant: list[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in meant)


def _dotted(key: Key) -> str:
    """A text that looks like a number or holds a line break is shown in quotes."""
    return ".".join(repr(name) if str(name).isdigit() or not str(name).isprintable() else str(name) for name in key)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}.."
