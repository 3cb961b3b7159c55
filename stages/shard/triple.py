"""One row as it was read -> one triple of texts, by the row's shape."""

import json
import math
import os.path
from dataclasses import dataclass, replace
from typing import Any

from stages.errors import RecipeError
from stages.shard.config import Columns, Shape

HH_HUMAN, HH_ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


@dataclass(frozen=True)
class Triple:
    """All strings, or all lists of messages {"role", "content"}, to which a chat template applies."""

    prompt: str | list[dict[str, Any]]
    chosen: str | list[dict[str, Any]]
    rejected: str | list[dict[str, Any]]
    margin: float | None = None  # how much better chosen is
    weight: float = 1.0  # of the pair in the loss

    def unrolled(self) -> "list[Labelled]":
        sides = ((self.chosen, True), (self.rejected, False))
        return [Labelled(self.prompt, side, label, self.weight) for side, label in sides]


@dataclass(frozen=True)
class Labelled:
    """A prompt, one completion, and whether it is desirable."""

    prompt: str | list[dict[str, Any]]
    completion: str | list[dict[str, Any]]
    label: bool
    weight: float = 1.0


class Malformed(ValueError):
    """This row does not have the shape of its set. It is set aside; the message becomes its `detail`."""


def detect_shape(row: dict[str, Any], columns: Columns, source: str) -> Shape:
    """Tell the shape of a set from its first row; raise RecipeError where the columns are not there."""
    if columns.chosen not in row and {columns.prompt, columns.completion, columns.label} <= row.keys():
        return "labelled"
    for name in filter(None, (columns.chosen, columns.rejected, columns.margin)):
        if name not in row:
            raise RecipeError(
                f"{source} has no column {name!r}; it has {', '.join(map(repr, row))}. "
                "Name its columns in the recipe: shard.columns: {prompt: .., chosen: .., rejected: ..}"
            )
    prompt, chosen = row.get(columns.prompt), row[columns.chosen]
    if isinstance(chosen, list):
        return "conversational" if prompt is not None else "implicit"
    if prompt is not None:
        return "explicit"
    return "hh" if isinstance(chosen, str) and chosen.startswith(HH_HUMAN) else "implicit"


def parse(text: str, shape: Shape, columns: Columns) -> Triple | Labelled:
    """Read one row of JSON text: of the shape "labelled" a Labelled, else a Triple. Raises Malformed."""
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise Malformed(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise Malformed(f"not a JSON object but a {type(row).__name__}")
    if shape == "labelled":
        return _parse_labelled(row, columns)
    triple = _parse_triple(row, shape, columns)
    return replace(triple, margin=_number(row, columns.margin)) if columns.margin else triple


def _parse_labelled(row: dict[str, Any], columns: Columns) -> Labelled:
    prompt, completion, label = _field(row, columns.prompt), _field(row, columns.completion), row.get(columns.label)
    if label not in (True, False):
        raise Malformed(f"column {columns.label!r} is {label!r}, not true or false")
    if isinstance(completion, list):
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        _check_messages(prompt, completion)
    elif not isinstance(prompt, str):
        raise Malformed("the prompt is a list of messages, and the completion is text")
    return Labelled(prompt, completion, bool(label))


def _number(row: dict[str, Any], name: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Malformed(f"column {name!r} is {value!r}, not a finite number")
    return float(value)


def _parse_triple(row: dict[str, Any], shape: Shape, columns: Columns) -> Triple:
    chosen, rejected = _field(row, columns.chosen), _field(row, columns.rejected)
    if type(chosen) is not type(rejected):
        raise Malformed(f"chosen is a {type(chosen).__name__}, rejected a {type(rejected).__name__}")
    if shape == "hh":
        return _split_transcript(chosen, rejected)
    if shape == "implicit":
        return _split_messages(chosen, rejected) if isinstance(chosen, list) else _split_text(chosen, rejected)
    prompt = _field(row, columns.prompt)
    if shape == "explicit" and not (isinstance(prompt, str) and isinstance(chosen, str)):
        raise Malformed("the set has the explicit shape, but this row's prompt or completions are not strings")
    if shape == "conversational":
        # A prompt given as a plain string is the user's one message.
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        _check_messages(prompt, chosen, rejected)
        if chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:  # the whole dialogue on each side
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return Triple(prompt, chosen, rejected)


def _field(row: dict[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None:
        raise Malformed(f"no value in column {name!r}")
    if not isinstance(value, str | list):
        raise Malformed(f"column {name!r} is a {type(value).__name__}, neither text nor a list of messages")
    return value


def _check_messages(*sides: Any) -> None:
    for messages in sides:
        good = isinstance(messages, list) and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        )
        if not good:
            raise Malformed('not a list of messages {"role": .., "content": ..}')


def _split_text(chosen: str, rejected: str) -> Triple:
    """The prompt is the common start, cut back to the end of a word, so that no completion begins inside one."""
    if chosen == rejected:
        return Triple("", chosen, rejected)
    common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - of text, on purpose
    end = len(common)
    while end and not common[end - 1].isspace():
        end -= 1
    prompt = common[:end].rstrip()
    return Triple(prompt, chosen[len(prompt) :], rejected[len(prompt) :])


def _split_messages(chosen: list[Any], rejected: list[Any]) -> Triple:
    _check_messages(chosen, rejected)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return Triple(chosen[:shared], chosen[shared:], rejected[shared:])


def _split_transcript(chosen: Any, rejected: Any) -> Triple:
    """Anthropic HH: the prompt runs to the last "\\n\\nAssistant:", and both transcripts share it."""
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise Malformed("the set has the HH transcript shape, but this row's completions are not strings")
    end = chosen.rfind(HH_ASSISTANT)
    if end < 0:
        raise Malformed(f"no {HH_ASSISTANT!r} in the chosen transcript")
    prompt = chosen[: end + len(HH_ASSISTANT)]
    if not rejected.startswith(prompt):
        raise Malformed("the transcripts part before the last Assistant turn of chosen")
    if HH_HUMAN in rejected[len(prompt) :]:
        raise Malformed("the rejected transcript goes on with another Human turn")
    return Triple(prompt, chosen[len(prompt) :], rejected[len(prompt) :])
