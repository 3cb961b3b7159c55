"""Rows that name their chosen and rejected: explicit, conversational, sharegpt, implicit, hh; and labelled ones."""

from collections.abc import Sequence
from typing import Any

from stages.shard.config import Columns, Shape
from stages.shard.shapes.cells import text_or_messages
from stages.shard.shapes.known import label_columns, prompt_column
from stages.shard.shapes.messages import decoded, dialogue, looks_like_messages, messages_of
from stages.shard.shapes.repeats import common_start, common_text, messages_apart, texts_apart
from stages.shard.shapes.row import Labelled, Malformed, Text, Triple

HH_HUMAN, HH_ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def triple_of(row: dict[str, Any], shape: Shape, columns: Columns, chat: bool) -> Triple:
    """Of a row with the columns `chosen` and `rejected`. Raises Malformed, Rejected."""
    sides = [text_or_messages(row, name) for name in (columns.chosen, columns.rejected)]
    names = ("chosen", "rejected")
    prompt: Any
    if shape == "hh":
        prompt, texts = _transcript(sides)
        return Triple(*_flat(_turns_of(prompt, [text.strip() for text in texts]) if chat else (prompt, texts)))
    if shape == "implicit":
        return Triple(*_flat(_implicit(sides, names, chat)))
    prompt = text_or_messages(row, prompt_column(row, columns))
    _check_alike(sides if shape == "explicit" else [decoded(side) for side in sides], names)
    if shape == "explicit" and not all(isinstance(each, str) for each in (prompt, *sides)):
        raise Malformed("the set has the explicit shape, but this row's prompt or completions are not strings")
    if shape in ("conversational", "sharegpt"):
        prompt, *sides = (decoded(each) for each in (prompt, *sides))
        if not chat and all(isinstance(each, str) for each in (prompt, *sides)):
            raise Malformed(f"the set has the {shape} shape, but this row is of plain text")
    return Triple(*_flat(apart(prompt, sides, names, chat, "prompt")))


def labelled_of(row: dict[str, Any], columns: Columns, chat: bool) -> Labelled:
    """Of a row with one completion and its label. Without a prompt, the completion is a whole dialogue."""
    named, label_name = label_columns(row, columns)
    label = row.get(label_name)
    if not isinstance(label, bool | int | float) or label not in (True, False):
        raise Malformed(f"column {label_name!r} is {label!r}, not true or false")
    completion = decoded(text_or_messages(row, named))
    prompt_name = prompt_column(row, columns)
    if prompt_name == named or (prompt_name not in row and not isinstance(completion, str)):
        turns = messages_of(completion, "completion")
        prompt: Text = common_start([turns])
        return Labelled(prompt, turns[len(prompt) :], bool(label))
    raw = decoded(text_or_messages(row, prompt_name))
    prompt, (side,) = apart(raw, [completion], ("completion",), chat, "prompt")
    return Labelled(prompt, side, bool(label))


def apart(
    prompt: Any, sides: Sequence[Any], names: Sequence[str], chat: bool, prompt_name: str
) -> tuple[Text, list[Any]]:
    """(prompt, completions): all strings, or all lists of messages, without what the completions repeat of the prompt.

    `chat`: strings are the user's and the assistant's messages even if nothing is a list.
    """
    _check_alike(sides, names)
    if not chat and isinstance(prompt, str) and all(isinstance(side, str) for side in sides):
        return texts_apart(prompt, sides, names)
    of_text = isinstance(prompt, str)
    asked = dialogue(prompt) if of_text else messages_of(prompt, prompt_name)
    answers = [
        [{"role": "assistant", "content": side}] if isinstance(side, str) else messages_of(side, name)
        for name, side in zip(names, sides, strict=True)
    ]
    return messages_apart(asked, answers, names, of_text)


def _check_alike(sides: Sequence[Any], names: Sequence[str]) -> None:
    """That all are text, or none is."""
    if len({isinstance(side, str) for side in sides}) > 1:
        kinds = (type(side).__name__ for side in sides)
        raise Malformed(", ".join(f"{name} is a {kind}" for name, kind in zip(names, kinds, strict=True)))


def _implicit(sides: list[Any], names: Sequence[str], chat: bool) -> tuple[Text, list[Any]]:
    sides = [decoded(side) for side in sides]
    _check_alike(sides, names)
    if isinstance(sides[0], str):
        prompt = common_text(*sides)
        rests = [side[len(prompt) :] for side in sides]
        return _turns_of(prompt, [rest.strip() for rest in rests]) if chat else (prompt, rests)
    turns = [messages_of(side, name) for side, name in zip(sides, names, strict=True)]
    shared = common_start(turns)
    return shared, [side[len(shared) :] for side in turns]


def _transcript(sides: list[Any]) -> tuple[str, list[str]]:
    """Anthropic HH: the prompt runs to the last "\\n\\nAssistant:", and both transcripts share it."""
    chosen, rejected = sides
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
    return prompt, [chosen[len(prompt) :], rejected[len(prompt) :]]


def _turns_of(prompt: str, answers: list[str]) -> tuple[Text, list[Any]]:
    return dialogue(prompt), [[{"role": "assistant", "content": answer}] for answer in answers]


def _flat(split: tuple[Text, list[Any]]) -> tuple[Text, Text, Text]:
    prompt, (chosen, rejected) = split
    return prompt, chosen, rejected


def shape_of_pair(row: dict[str, Any], columns: Columns) -> Shape | None:
    """Of a row that has values in `chosen` and `rejected`; None where its prompt is null or nothing fits."""
    chosen, rejected = decoded(row.get(columns.chosen)), decoded(row.get(columns.rejected))
    if not isinstance(chosen, str | list | dict) or not isinstance(rejected, str | list | dict):
        return None
    name = prompt_column(row, columns)
    if name not in row:
        if isinstance(chosen, str):
            return "hh" if chosen.startswith(HH_HUMAN) else "implicit"
        return "implicit"
    prompt = decoded(row[name])
    if prompt is None:
        return None
    if all(isinstance(each, str) for each in (prompt, chosen, rejected)):
        return "explicit"
    of_sharegpt = any(
        looks_like_messages(each) and "from" in (each[0] if isinstance(each, list) else each)
        for each in (prompt, chosen)
    )
    return "sharegpt" if of_sharegpt else "conversational"
