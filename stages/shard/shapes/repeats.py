"""What completions repeat of their prompt is taken off, so that nothing is trained on twice.

Where it is not certain what is a repeat, the row is set aside (`doubled_content`).
"""

import json
import os.path
from collections.abc import Sequence
from typing import Any

from stages.shard.shapes.row import Malformed, Message, Rejected

SYSTEM = ("system", "developer")


def texts_apart(prompt: str, sides: Sequence[str], names: Sequence[str]) -> tuple[str, list[str]]:
    """(prompt, sides) of plain text: a prompt that opens all sides is taken off; what follows keeps its blanks."""
    start = prompt.strip()
    rests = [_after(start, side) for side in sides]
    repeated = [rest is not None for rest in rests]
    if not start or not any(repeated):
        return prompt, list(sides)
    telling = len(start) >= 16 or len(start.split()) >= 3  # "Hello" may open a completion without repeating the prompt
    if not all(repeated):
        if telling:
            name = names[repeated.index(True)]
            raise Rejected("doubled_content", f"{name} repeats the prompt, and {names[repeated.index(False)]} does not")
        return prompt, list(sides)
    if not telling:
        if len(sides) > 1:
            raise Rejected(
                "doubled_content", f"all completions begin with the prompt {start!r}, perhaps a repeat of it"
            )
        return prompt, list(sides)
    if all(side.startswith(prompt) for side in sides):
        return prompt, [side[len(prompt) :] for side in sides]
    return prompt.rstrip(), [str(rest) for rest in rests]


def messages_apart(
    prompt: list[Message], sides: Sequence[list[Message]], names: Sequence[str], of_text: bool
) -> tuple[list[Message], list[list[Message]]]:
    """(prompt, sides) of messages. `of_text`: the prompt came as a string, and may be any of the user's turns."""
    if not all(sides):
        raise Rejected("empty", f"{names[[bool(side) for side in sides].index(False)]} has no messages")
    prompt, sides = _system_moved(prompt, sides, names)
    if of_text and all(side and side[0]["role"] != "assistant" for side in sides):
        shared = common_start(sides)
        if any(_same(message, prompt[-1]) for message in shared):
            system = [] if shared[0]["role"] in SYSTEM else [m for m in prompt if m["role"] in SYSTEM]
            return system + shared, [side[len(shared) :] for side in sides]
    counts = [_overlap(prompt, side) for side in sides]
    if len(set(counts)) > 1:
        more, less = names[counts.index(max(counts))], names[counts.index(min(counts))]
        raise Rejected("doubled_content", f"{more} repeats {max(counts)} messages of the prompt, {less} {min(counts)}")
    if not counts[0]:
        shared = common_start(sides)
        for end in range(len(shared), len(prompt), -1):
            if _all_same(shared[end - len(prompt) : end], prompt):
                return shared[:end], [side[end:] for side in sides]
    sides = [side[count:] for side, count in zip(sides, counts, strict=True)]
    for name, side in zip(names, sides, strict=True):
        if not side:
            raise Rejected("doubled_content", f"{name} holds nothing but messages of the prompt")
        if prompt and side[0]["role"] == prompt[-1]["role"] == "user":
            raise Rejected(
                "doubled_content",
                f"{name} begins with a user's message that is not the prompt's last one. Of whole dialogues, "
                "shard.shape: implicit makes pairs without the prompt's column",
            )
    return prompt, _without_beginning(prompt, sides, names)


def common_start(sides: Sequence[list[Message]]) -> list[Message]:
    """The messages that all sides begin with, of which each keeps its last; of one side, all before its last answer."""
    if len(sides) == 1:
        asked = [i for i, message in enumerate(sides[0][:-1]) if message["role"] != "assistant"]
        return sides[0][: asked[-1] + 1] if asked else []
    shared = 0
    while shared < min(map(len, sides)) - 1 and all(_same(side[shared], sides[0][shared]) for side in sides):
        shared += 1
    return sides[0][:shared]


def common_text(chosen: str, rejected: str) -> str:
    """The common start of two texts, cut back to the end of a word, so that no completion begins inside one."""
    if chosen == rejected:
        return ""
    common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - of text, on purpose
    end = len(common)
    while end and not common[end - 1].isspace():
        end -= 1
    return common[:end].rstrip()


def _after(start: str, side: str) -> str | None:
    """What follows `start` in a side, None if it does not begin with it as whole words."""
    opened = side.lstrip()
    if not start or not opened.startswith(start):
        return None
    rest = opened[len(start) :]
    inside = rest[:1].isascii() and rest[:1].isalnum() and start[-1].isascii() and start[-1].isalnum()
    return None if inside else rest


def _system_moved(
    prompt: list[Message], sides: Sequence[list[Message]], names: Sequence[str]
) -> tuple[list[Message], list[list[Message]]]:
    """A system message that all sides open with, and the prompt has none or the same, goes to the prompt."""
    opens = [side[0] if side and side[0]["role"] in SYSTEM else None for side in sides]
    first = opens[0]
    if not any(opens):
        return prompt, list(sides)
    if first is None or not all(each is not None and _same(each, first) for each in opens):
        raise Malformed(
            f"the system messages that open {' and '.join(names)} differ, so they are no part of the prompt"
        )
    own = prompt[0] if prompt and prompt[0]["role"] in SYSTEM else None
    if own is not None and not _same(own, first):
        raise Malformed(f"the system message that opens {' and '.join(names)} is not the prompt's")
    return prompt if own else [first, *prompt], [side[1:] for side in sides]


def _overlap(prompt: list[Message], side: list[Message]) -> int:
    """How many of the prompt's last messages the side begins with."""
    longest = min(len(prompt), len(side))
    return next((n for n in range(longest, 0, -1) if _all_same(prompt[-n:], side[:n])), 0)


def _without_beginning(prompt: list[Message], sides: list[list[Message]], names: Sequence[str]) -> list[list[Message]]:
    """Of an assistant's message that the prompt begins: what the sides repeat of it is taken off."""
    if not (prompt and prompt[-1]["role"] == "assistant" and all(side[0]["role"] == "assistant" for side in sides)):
        return sides
    begun, said = prompt[-1]["content"], [side[0]["content"] for side in sides]
    if not begun or not all(said):
        return sides
    kept, rests = texts_apart(begun, said, names)
    if kept != begun:  # the blank at its end, which the sides have too
        rests = [text.lstrip() if begun[-1].isspace() else text for text in rests]
    return [[side[0] | {"content": rest}, *side[1:]] for side, rest in zip(sides, rests, strict=True)]


def _all_same(one: Sequence[Message], other: Sequence[Message]) -> bool:
    return len(one) == len(other) and all(map(_same, one, other))


def _same(one: Message, other: Message) -> bool:
    """The same turn: another key, or blanks around its text, make no difference."""
    return _said(one) == _said(other)


def _said(message: Message) -> tuple[Any, ...]:
    calls = message.get("tool_calls")
    return (
        message["role"],
        (message["content"] or "").strip(),
        json.dumps(calls, sort_keys=True, default=str) if calls else None,
    )
