"""Several completions of a prompt, with a score or rank each: UltraFeedback, Nectar and their like."""

import hashlib
import json
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any, NamedTuple

from stages.shard.config import Columns, Pairing
from stages.shard.shapes.cells import number_or_none, text_or_messages
from stages.shard.shapes.finish import was_cut
from stages.shard.shapes.known import PROMPTS, RANKS, SCORES, TEXTS, completions_column, prompt_column
from stages.shard.shapes.messages import decoded
from stages.shard.shapes.paired import apart
from stages.shard.shapes.row import Malformed, Rejected, Triple


class Candidate(NamedTuple):
    score: float  # higher is better
    text: Any  # a string or messages
    name: str  # what people call it
    cut: bool  # when it was sampled


def ranked_of(row: dict[str, Any], columns: Columns, pairing: Pairing, chat: bool) -> Iterator[Triple | Rejected]:
    """The pairs of a row, and what makes none: ties, and candidates without a score. Raises Malformed, Rejected."""
    prompt = decoded(text_or_messages(row, prompt_column(row, columns, PROMPTS)))
    candidates, unscored = _candidates(row, columns)
    yield from unscored
    if len(candidates) < 2:
        raise Malformed(f"{len(candidates)} completions with a score or rank, and a pair takes two")
    candidates.sort(key=lambda each: -each.score)  # stable: the earlier one first
    if candidates[0].score == candidates[-1].score:
        raise Rejected("tie", f"all {len(candidates)} completions have the same score or rank")
    for better, worse in _paired(candidates, pairing, row):
        if better.score == worse.score:
            yield Rejected("tie", f"{better.name} and {worse.name} have the same score or rank")
            continue
        try:
            sides = [better.text, worse.text]
            asked, (chosen, rejected) = apart(prompt, sides, (better.name, worse.name), chat, "prompt")
            margin = better.score - worse.score
            yield Triple(asked, chosen, rejected, margin, chosen_cut=better.cut, rejected_cut=worse.cut)
        except Rejected as error:
            yield error


def is_ranked(row: dict[str, Any], columns: Columns) -> bool:
    """Whether candidates with scores or ranks are there."""
    try:
        return bool(_candidates(row, columns)[0])
    except Rejected:
        return False


def _paired(ordered: list[Candidate], pairing: Pairing, row: dict[str, Any]) -> list[tuple[Candidate, Candidate]]:
    """(better, worse) of candidates in order, of which the first and the last are no tie."""
    if pairing == "all":
        return list(combinations(ordered, 2))
    if pairing == "adjacent":
        return list(pairwise(ordered))
    if pairing == "best_worst":
        return [(ordered[0], ordered[-1])]
    worse = [each for each in ordered if each.score < ordered[0].score]
    drawn = hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).digest()
    return [(ordered[0], worse[int.from_bytes(drawn[:8], "big") % len(worse)])]


def _candidates(row: dict[str, Any], columns: Columns) -> tuple[list[Candidate], list[Rejected]]:
    name = completions_column(row, columns)
    if name is None:
        raise Malformed(f"no list of completions in column {columns.completions or 'completions'!r}")
    held = _list(row[name])
    if held is None:
        raise Malformed(f"column {name!r} is a {type(row[name]).__name__}, not a list of completions")
    scores, sign, called = _scores(row, held, columns)
    candidates: list[Candidate] = []
    unscored: list[Rejected] = []
    for i, (each, score) in enumerate(zip(held, scores, strict=True)):
        value, text = number_or_none(score), _text(each, name)
        if value is None:
            unscored.append(Malformed(f"completion {i} of {name!r} has the {called} {score!r}, not a finite number"))
        else:
            finish = each.get(columns.finish) if isinstance(each, dict) else None
            try:
                cut = was_cut(finish, f"{columns.finish!r} of completion {i}")
            except Malformed as error:
                unscored.append(error)
            else:
                candidates.append(Candidate(sign * value, text, f"completion {i}", cut))
    return candidates, unscored


def _scores(row: dict[str, Any], held: list[Any], columns: Columns) -> tuple[list[Any], int, str]:
    """(values, 1 if higher is better else -1, their name): a column beside the completions, or a key in each."""
    named = [(columns.scores, 1), (columns.ranks, -1)]
    known = [(name, 1) for name in SCORES] + [(name, -1) for name in RANKS]
    for name, sign in [each for each in named if each[0]] or known:
        beside = _list(row.get(str(name)))
        if beside is not None:
            if len(beside) != len(held):
                raise Malformed(f"{len(beside)} values in column {name!r} for {len(held)} completions")
            return beside, sign, str(name)
        if any(isinstance(each, dict) and each.get(str(name)) is not None for each in held):
            return [each.get(name) if isinstance(each, dict) else None for each in held], sign, str(name)
    wanted = columns.scores or columns.ranks
    raise Malformed(
        f"the completions have no {wanted!r}" if wanted else "the completions have neither scores nor ranks"
    )


def _text(candidate: Any, name: str) -> Any:
    if isinstance(candidate, dict) and "role" not in candidate and "from" not in candidate:
        key = next((key for key in TEXTS if isinstance(candidate.get(key), str | list | dict)), None)
        if key is None:
            raise Malformed(f"a completion of {name!r} has none of the keys {', '.join(TEXTS)}")
        candidate = candidate[key]
    if not isinstance(candidate, str | list | dict):
        raise Malformed(f"a completion of {name!r} is a {type(candidate).__name__}, neither text nor messages")
    return decoded(candidate)


def _list(value: Any) -> list[Any] | None:
    """A list, which may be JSON text."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None
