"""Two completions side by side and a verdict: HelpSteer 2 and 3, SHP and their like."""

from typing import Any

from stages.shard.config import Columns
from stages.shard.shapes.cells import number, number_or_none, text_or_messages
from stages.shard.shapes.known import PROMPTS, Compared, compared_of, prompt_column
from stages.shard.shapes.messages import decoded, messages_of
from stages.shard.shapes.paired import apart
from stages.shard.shapes.repeats import common_start
from stages.shard.shapes.row import Malformed, Rejected, Triple


def compared_triple(row: dict[str, Any], columns: Columns, chat: bool) -> Triple:
    """The better completion is chosen, whichever stands first. Raises Malformed, Rejected."""
    known = compared_of(row, columns)
    if known is None:
        raise Malformed("no two completions with a preference between them")
    strength = _strength(row, known)
    if strength == 0:
        raise Rejected("tie", f"column {known.preference!r} is {row[known.preference]!r}: neither is better")
    names = [known.first, known.second]
    if strength > 0:
        names.reverse()
    sides = [decoded(text_or_messages(row, name)) for name in names]
    margin = _margin(row, known, strength)
    asked = prompt_column(row, columns, PROMPTS)
    if asked in row:
        prompt, (chosen, rejected) = apart(decoded(text_or_messages(row, asked)), sides, names, chat, "prompt")
        return Triple(prompt, chosen, rejected, margin)
    turns = [messages_of(side, name) for side, name in zip(sides, names, strict=True)]
    shared = common_start(turns)
    return Triple(shared, turns[0][len(shared) :], turns[1][len(shared) :], margin)


def _strength(row: dict[str, Any], known: Compared) -> float:
    """Below 0 where the first is better, above where the second is."""
    value, name = row.get(known.preference), f"column {known.preference!r}"
    if known.verdict == "signed":
        return number(value, name)
    if known.verdict == "winner":
        told = str(value).strip().lower()
        if told.startswith("tie") or told.startswith("both"):
            return 0
        if told in ("a", "model_a", known.first):
            return -1
        if told in ("b", "model_b", known.second):
            return 1
        raise Malformed(f"{name} is {value!r}, none of model_a (a, {known.first}), model_b (b, {known.second}), tie")
    found = number(value, name)
    if found not in (0, 1):
        raise Malformed(f"{name} is {value!r}, neither 0 nor 1")
    return -1 if found == (1 if known.verdict == "first_is_1" else 0) else 1


def _margin(row: dict[str, Any], known: Compared, strength: float) -> float | None:
    if known.verdict == "signed":
        return abs(strength)
    scores = [number_or_none(row.get(name)) for name in known.scores or ()]
    if len(scores) < 2 or scores[0] is None or scores[1] is None:
        return None
    margin = (scores[0] - scores[1]) * (-1 if strength > 0 else 1)
    if margin < 0:
        raise Rejected("margin", f"column {known.preference!r} and the scores {scores} contradict each other")
    return margin
