"""The completions of a prompt and what the judge says of them -> triples, or why there is none."""

import json
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import combinations
from typing import Any, NamedTuple

from stages.judge.config import DeltaJudge, FunctionJudge, LlmJudge, RewardModel
from stages.judge.judges import Answer, Question

Rows = Sequence[dict[str, Any]]


class Pairs(NamedTuple):
    """`margin` is None where completions were compared."""

    pairs: Sequence[tuple[dict[str, Any], dict[str, Any], float | None]]  # chosen, rejected, margin
    reason: str = ""  # where there are none: tie | few | fault
    detail: str = ""


def compares(config: FunctionJudge | RewardModel | LlmJudge | DeltaJudge) -> bool:
    return isinstance(config, LlmJudge) and config.mode == "pairwise"


def distinct(rows: Rows) -> list[dict[str, Any]]:
    """Completions that say something, each text once: the first that has it."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["text"].strip():
            found.setdefault(row["text"], row)
    return list(found.values())


def questions_of(prompt: str | list[dict[str, Any]], rows: Rows, config: Any) -> list[Question]:
    """What has to be asked of distinct completions; nothing where there are not two."""
    if isinstance(config, DeltaJudge) or len(rows) < 2:
        return []
    told = json.dumps(prompt, ensure_ascii=False)
    if compares(config):
        return [(told, one["text"], other["text"]) for one, other in combinations(rows, 2)]
    return [(told, row["text"]) for row in rows]


def pairs_of(
    prompt_id: str, prompt: str | list[dict[str, Any]], rows: Rows, config: Any, answer: Callable[[Question], Answer]
) -> Pairs:
    """Of the completions of one prompt, in their order. No pair has a completion, or a verdict, of a failed call."""
    if isinstance(config, DeltaJudge):
        return _delta(rows)
    rows = distinct(rows)
    if len(rows) < 2:
        return Pairs([], "few", f"{len(rows)} distinct completions")
    asked = questions_of(prompt, rows, config)
    found = [answer(each) for each in asked]
    faults = [each.fault for each in found if each.fault is not None]
    if compares(config):
        better = _compared(len(rows), found)
    else:
        scores = [each.value for each in found]
        better = {
            (i, j): a - b
            for i, a in enumerate(scores)
            for j, b in enumerate(scores)
            if a is not None and b is not None and a - b > config.min_margin
        }
        ranked = sorted((i for i, score in enumerate(scores) if score is not None), key=lambda i: -(scores[i] or 0))
        if len(ranked) >= 2 and config.pairing != "all":
            best = ranked[0]
            better = {key: margin for key, margin in better.items() if key[0] == best}
    pairs = _taken(better, prompt_id, config)
    if pairs:
        return Pairs([(rows[i], rows[j], None if compares(config) else better[i, j]) for i, j in pairs])
    if faults:
        return Pairs([], "fault", faults[0])
    return Pairs([], "tie", "no completion is better than another")


def _compared(count: int, found: Sequence[Answer]) -> dict[tuple[int, int], float]:
    """Who beats whom, and by how much in the share of comparisons won. Of other than all pairs only those of the best:
    it has to beat the other in their own comparison.
    """
    direct = {
        (pair if verdict.value > 0 else pair[::-1])
        for pair, verdict in zip(combinations(range(count), 2), found, strict=True)
        if verdict.value
    }
    shares = [[0.0, 0] for _ in range(count)]
    for pair, verdict in zip(combinations(range(count), 2), found, strict=True):
        if verdict.value is not None:
            for one, sign in zip(pair, (1, -1), strict=True):
                shares[one][0] += (1 + sign * verdict.value) / 2
                shares[one][1] += 1
    mean = [won / asked if asked else 0.5 for won, asked in shares]
    return {(i, j): mean[i] - mean[j] for i, j in sorted(direct)}


def _taken(better: dict[tuple[int, int], float], prompt_id: str, config: Any) -> list[tuple[int, int]]:
    """Which of the pairs (better, worse), of which the values say by how much."""
    if not better or config.pairing == "all":
        return sorted(better)
    best = max(better, key=lambda key: (better[key], -key[0], -key[1]))
    if config.pairing == "best_worst":
        return [best]
    others = sorted(j for i, j in better if i == best[0])
    chance = int.from_bytes(blake2b(f"{config.seed}/{prompt_id}".encode(), digest_size=8).digest(), "little")
    return [(best[0], others[chance % len(others)])]


def _delta(rows: Rows) -> Pairs:
    """Sample by sample."""
    last = max((row["model"] for row in rows), default=0)
    of = {(row["model"], row["sample"]): row for row in rows if row["text"].strip()}
    pairs = [
        (row, of[last, number], None)
        for (model, number), row in sorted(of.items())
        if model == 0 and (last, number) in of and row["text"] != of[last, number]["text"]
    ]
    return Pairs(pairs) if pairs else Pairs([], "few", "no sample of both models, or they wrote the same")
