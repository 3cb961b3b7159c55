"""Messages as the template takes them, and their outline: what they hold, without the texts themselves.

Rows of one outline are written alike by a template, their texts apart. So the template's part is found once an outline,
with a sentinel in the place of each text, and a row fills its texts in.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from stages.shard.rendering.control import Control
from stages.shard.triple import Rejected

Message = dict[str, Any]
Part = str | int  # what a template writes, or the number of a hole
REASONING = ("reasoning_content", "thinking", "reasoning")
# What templates look for in a message: it stays in an outline, between the texts.
_TAGS = re.compile(r"(</?think>|/no_think\b|/think\b)")
SENTINEL = re.compile(r"qzx(\d+)xzq")


def sentinel(hole: int) -> str:
    return f"qzx{hole}xzq"


def parts_of(text: str) -> list[Part]:
    """Of what a template wrote around sentinels."""
    return [int(part) if i % 2 else part for i, part in enumerate(SENTINEL.split(text)) if part]


class Outline(NamedTuple):
    """Of some messages: `key` says all but the texts of the holes, in the order of `texts`."""

    key: tuple[Any, ...]
    texts: list[str]
    literal: list[bool]  # of each text: whether it spells a control token


class Blank(NamedTuple):
    """A message of an outline, with sentinels for texts, and which of them the template has to write."""

    message: Message
    needed: list[int]  # where the turn is context: the answer, without the reasoning before it
    whole: list[int]  # where it is trained
    tags: int  # how many <think> it has


def normal(messages: Any, name: str, control: Control) -> list[Message]:
    """The messages without nulls, their text parts joined. Raises Rejected."""
    if not isinstance(messages, list):
        raise Rejected("malformed", f"{name} is a {type(messages).__name__}, and not a list of messages")
    return [_normal(message, f"message {i} of {name}", control) for i, message in enumerate(messages)]


def _normal(message: Any, name: str, control: Control) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Rejected("malformed", f'{name} is not of the form {{"role": .., "content": ..}}')
    content = message.get("content")
    if isinstance(content, list):
        content = _joined(content, name)
    elif content is None:
        content = ""
    elif not isinstance(content, str):
        raise Rejected("malformed", f"the content of {name} is a {type(content).__name__}, and not text")
    if control.spelled(message["role"]):
        raise Rejected("malformed", f"the role of {name} spells a control token: {message['role'][:60]!r}")
    if message["role"] == "assistant":
        content = control.without_end(content)
    rest = {
        key: value for key, value in message.items() if value is not None and not (key == "tool_calls" and not value)
    }
    calls = rest.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Rejected("malformed", f"tool_calls of {name} is no list of calls")
    for key in REASONING:
        if key in rest and not isinstance(rest[key], str):
            raise Rejected("malformed", f"{key} of {name} is a {type(rest[key]).__name__}, and not text")
    return rest | {"content": content}


def _joined(parts: list[Any], name: str) -> str:
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind != "text" or not isinstance(text, str):
            raise Rejected("unsupported", f"{name} has a part of the type {kind!r}, and only text can be trained on")
        texts.append(text)
    return "".join(texts)


def says_something(message: Message) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls") or any(message.get(k) for k in REASONING))


def outline(messages: Sequence[Message], base: int, control: Control) -> Outline:
    """Its holes are numbered from `base`. Raises Rejected for what is no JSON."""
    key: list[Any] = []
    texts: list[str] = []
    literal: list[bool] = []
    for message in messages:
        content, found = _split(message["content"])
        texts += found
        reasoning = []
        for name in REASONING:
            if message.get(name):
                shape, found = _split(message[name])
                reasoning.append((name, shape))
                texts += found
        rest = {name: value for name, value in message.items() if name not in ("role", "content", *REASONING)}
        literal += [control.spelled(text) for text in texts[len(literal) :]]
        told = ""
        if rest:
            told, spelled = masked(rest, base + len(texts), control)
            texts += spelled
            literal += [True] * len(spelled)
        key.append((message["role"], content, tuple(reasoning), told))
    return Outline(tuple(key), texts, literal)


def masked(value: Any, base: int, control: Control) -> tuple[str, list[str]]:
    """JSON text of tool calls or schemas, with sentinels for what spells control tokens, and what was there."""
    try:
        told = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Rejected("malformed", f"a tool or a key of a message is not JSON: {error}") from error
    return control.masked(told, lambda i: sentinel(base + i))


def _split(text: str) -> tuple[tuple[str | None, ...], list[str]]:
    """(tags, white space, and None for a text), the texts."""
    shape: list[str | None] = []
    texts = []
    for piece in _TAGS.split(text) if "think" in text else (text,):
        inner = piece.strip()
        if not inner or _TAGS.fullmatch(piece):
            shape += [piece] if piece else []
            continue
        start = len(piece) - len(piece.lstrip())
        for part in (piece[:start], None, piece[start + len(inner) :]):
            if part != "":
                shape.append(part)
        texts.append(inner)
    return tuple(shape), texts


def blanks(key: tuple[Any, ...], base: int) -> tuple[list[Blank], int]:
    """The messages of an outline's key, and the number of the next hole."""
    made = []
    for role, content, reasoning, told in key:
        text, holes, base = _blank(content, base)
        answer = len(content) - content[::-1].index("</think>") if "</think>" in content else 0
        needed = holes[sum(part is None for part in content[:answer]) :]
        message, whole = {"role": role, "content": text}, list(holes)
        for name, shape in reasoning:
            message[name], more, base = _blank(shape, base)
            whole += more
        if told:
            message |= json.loads(told)
            base = max([base, *(int(hole) + 1 for hole in SENTINEL.findall(told))])
        made.append(Blank(message, needed, whole, content.count("<think>")))
    return made, base


def _blank(shape: tuple[str | None, ...], base: int) -> tuple[str, list[int], int]:
    holes = list(range(base, base + shape.count(None)))
    numbers = iter(holes)
    text = "".join(sentinel(next(numbers)) if part is None else part for part in shape)
    return text, holes, base + len(holes)
