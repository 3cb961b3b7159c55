"""Why no shape fits the rows of a set: in words, with what to do about it."""

import json
from collections.abc import Sequence
from typing import Any

from stages.errors import RecipeError
from stages.shard.config import Columns
from stages.shard.reading.opening import problem_of
from stages.shard.shapes.known import PROMPTS, TEXTS, prompt_column
from stages.shard.shapes.messages import decoded, looks_like_messages

SHAPES = (
    "The shapes there are: prompt, chosen and rejected (text, or lists of messages); chosen and rejected alone; "
    "conversations of from/value with chosen and rejected; prompt and a list of completions with scores or ranks; "
    "two responses and a preference; prompt, completion and label"
)


def raise_unreadable(rows: Sequence[str], source: str) -> None:
    if not rows:
        raise RecipeError(f"shard.source {source} has no rows. Name one that has some")
    try:
        first = json.loads(rows[0])
    except (ValueError, RecursionError) as error:
        if problem := problem_of(rows[0]):
            raise RecipeError(f"the first row of {source} cannot be read: {problem}. Is it text in UTF-8?") from error
        raise RecipeError(f"the first row of {source} is not JSON: {error}. One JSON object a line is read") from error
    raise RecipeError(f"the first row of {source} is a {type(first).__name__}, not a JSON object with columns")


def no_column(row: dict[str, Any], number: int, name: str, source: str) -> str:
    return (
        f"{source} has no column {name!r}; it has {', '.join(map(repr, row)) or 'none'}, by its row {number}. "
        "Name its columns in the recipe: shard.columns: {prompt: .., chosen: .., rejected: ..}"
    )


def nothing_fits(row: dict[str, Any], number: int, columns: Columns, source: str) -> str:
    if {"response", "helpfulness"} <= row.keys() or ("response" in row and "score" in row):
        return (
            f"{source} has one scored response a row ({', '.join(map(repr, row))}), and a pair takes two of a prompt. "
            "Of HelpSteer 2, take its preferences (response_1, response_2, preference_strength); else join the rows of "
            "a prompt into lists `completions` and `scores`"
        )
    if (lone := _lone_answer(row, columns)) is not None:
        return (
            f"{source} has one answer a prompt, {lone!r} (of {', '.join(map(repr, row))}), and a pair takes two. Add a "
            "column rejected, of worse answers; or a column label, of truths, for shard.rows: labelled and train.loss: "
            "kto; or let the model answer the prompts, and a judge compare: sample and judge"
        )
    if (name := next((name for name, value in row.items() if _are_rows(value)), None)) and len(row) <= 3:
        return (
            f"{source} is one object, and its {name!r} is a list of objects: are these the rows? Write them alone: "
            f"jq -c '.[\"{name}\"][]' {source} > rows.jsonl"
        )
    for name in (columns.chosen, columns.rejected):
        if name not in row:
            return f"{no_column(row, number, name, source)}. {SHAPES}"
    if unnamed := unnamed_prompt(row, columns):
        return (
            f"{source} has no column {columns.prompt!r}, and {unnamed!r} is perhaps the prompt; it has "
            f"{', '.join(map(repr, row))}. Say so in the recipe: shard.columns: {{prompt: {unnamed}}}; or set "
            "shard.shape: implicit, if the completions hold the prompt"
        )
    kinds = ", ".join(f"{key!r} ({type(value).__name__})" for key, value in row.items())
    return f"{source} has rows of no known shape; its row {number} has {kinds}. {SHAPES}"


def _are_rows(value: Any) -> bool:
    """Objects that are no messages."""
    of_objects = isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
    return bool(of_objects) and not looks_like_messages(value)


def _lone_answer(row: dict[str, Any], columns: Columns) -> str | None:
    """The one answer of a row that is for fine-tuning."""
    found = [name for name in TEXTS if isinstance(row.get(name), str) and prompt_column(row, columns, PROMPTS) in row]
    return found[0] if len(found) == 1 and not {columns.chosen, columns.rejected} & row.keys() else None


def unnamed_prompt(row: dict[str, Any], columns: Columns) -> str | None:
    """A column that is likely the prompt, though the recipe does not say so; where the completions hold none."""
    chosen = decoded(row.get(columns.chosen))
    if prompt_column(row, columns) in row:
        return None
    if isinstance(chosen, str) and chosen.startswith("\n\nHuman:"):
        return None
    opening = chosen[0] if isinstance(chosen, list) and chosen else None
    if isinstance(opening, dict) and opening.get("role", opening.get("from")) not in ("assistant", "gpt"):
        return None  # a whole dialogue
    return next((name for name in (*PROMPTS, "input") if row.get(name)), None)
