"""The shape of a set, told from a sample of its rows."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from stages.errors import RecipeError
from stages.shard.config import Chat, Columns, Shape, ShardConfig, Source
from stages.shard.shapes.known import PROMPTS, compared_of, in_our_words, label_columns, prompt_column
from stages.shard.shapes.messages import decoded
from stages.shard.shapes.misfit import no_column, nothing_fits, raise_unreadable, unnamed_prompt
from stages.shard.shapes.paired import shape_of_pair
from stages.shard.shapes.ranked import is_ranked

SAMPLE = 100  # rows
SYSTEMS = ("system", "system_prompt")


class Told(NamedTuple):
    shape: Shape
    of_messages: bool  # whether a chat template has to write them
    row: int  # the first of the sample that has this shape
    notices: list[str]


def tell(rows: Sequence[str], columns: Columns, source: str, shape: Shape = "auto", text: str = "auto") -> Told:
    """The shape that most of the rows have (JSON text each, the first ones of a set).

    Rows that cannot be read or miss a value have no say. Raises RecipeError where no row fits, or columns are missing.
    """
    known = [(i, in_our_words(row, columns)) for i, row in enumerate(map(_object, rows)) if row is not None]
    if not known:
        raise_unreadable(rows, source)
    shapes = {i: shape_of(row, columns) for i, row in known}
    if not any(shapes.values()):  # a column of nothing but nulls is as good as none
        present = [(i, {key: value for key, value in row.items() if value is not None}) for i, row in known]
        shapes = {i: shape_of(row, columns) for i, row in present}
    votes = Counter(found for found in shapes.values() if found)
    if shape == "auto":
        if not votes:
            raise RecipeError(nothing_fits(known[0][1], known[0][0], columns, source))
        shape = votes.most_common(1)[0][0]
    told = next((i for i, found in shapes.items() if found == shape), known[0][0])
    row = dict(known)[told]
    _check_columns(known, shape, columns, source)
    found = _others(votes, shape, told, source), _two_named(row, shape, columns), _unread(known, shape, columns, source)
    notices = [note for note in found if note]
    of_messages = _of_messages(row, shape, columns, text)
    sample = [each for i, each in known if shapes[i] == shape or shape == "explicit"]
    if not of_messages and (note := _plain_text(sample, shape, columns, source)):
        notices.append(note)
    return Told(shape, of_messages, told, notices)


def tell_source(rows: Sequence[str], source: Source, config: ShardConfig) -> Told:
    """`tell` of the first rows of a source. Raises RecipeError also where the recipe makes nothing of their shape."""
    told = tell(rows, source.columns, source.source, source.shape, source.text)
    if told.shape == "labelled" and config.rows == "pairs":
        raise RecipeError(
            f"{source.source} holds labelled completions, of which no pairs can be made. Set shard.rows: labelled, and "
            "train.loss to one that takes them, as kto does"
        )
    named = {"kwargs_column": config.chat.kwargs_column}
    if config.chat.tools_column != Chat().tools_column:
        named["tools_column"] = config.chat.tools_column
    for field, name in named.items():
        if name is not None and not any(name in row for row in map(_object, rows) if row is not None):
            told.notices.append(
                f"{source.source}: none of the first {len(rows)} rows has the column {name!r} of shard.chat.{field}"
            )
    return told


def shape_of(row: dict[str, Any], columns: Columns) -> Shape | None:
    """Of one row; None where it has no say."""
    paired = columns.chosen in row and columns.rejected in row
    if compared := compared_of(row, columns):
        return "compared" if row[compared.preference] is not None else None
    if paired:
        return shape_of_pair(row, columns) if not unnamed_prompt(row, columns) else None
    completion, label = label_columns(row, columns)
    if completion in row and label in row:
        return "labelled" if row[completion] is not None and row[label] is not None else None
    return "ranked" if is_ranked(row, columns) and prompt_column(row, columns, PROMPTS) in row else None


def _object(text: str) -> dict[str, Any] | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _of_messages(row: dict[str, Any], shape: Shape, columns: Columns, text: str) -> bool:
    if text == "chat" or shape in ("conversational", "sharegpt"):
        return True
    if text == "auto" and (shape in ("ranked", "compared") or columns.system is not None):
        return True
    if shape == "labelled":
        values: list[Any] = [row.get(label_columns(row, columns)[0]), row.get(prompt_column(row, columns))]
    elif shape in ("ranked", "compared"):
        values = [row.get(prompt_column(row, columns, PROMPTS))]
    else:
        values = [row.get(columns.chosen)] if shape == "implicit" else []
    return any(isinstance(decoded(value), list | dict) for value in values)


def _check_columns(known: list[tuple[int, dict[str, Any]]], shape: Shape, columns: Columns, source: str) -> None:
    """That what the recipe names is there, in one row of the sample at least."""
    wanted = [columns.weight, columns.system]
    if columns.margin and not any(columns.margin in row for _, row in known):
        wanted += columns.margin.split(" - ", 1)
    if shape not in ("ranked", "compared", "labelled"):
        wanted += [columns.chosen, columns.rejected]
    if shape in ("explicit", "conversational", "sharegpt") or columns.prompt != Columns().prompt:
        wanted.append(prompt_column(known[0][1], columns))  # one that the recipe names is never done without
    if shape not in ("ranked", "compared"):
        finishes = ["finish"] if shape == "labelled" else ["chosen_finish", "rejected_finish"]
        wanted += [each for name in finishes if (each := getattr(columns, name)) != getattr(Columns(), name)]
    for name in filter(None, wanted):
        if not any(name in row for _, row in known):
            raise RecipeError(no_column(known[0][1], known[0][0], name, source))


def _others(votes: Counter[Shape], shape: Shape, told: int, source: str) -> str | None:
    others = {other: count for other, count in votes.items() if other != shape}
    if not others or shape not in votes:
        return None
    counts = ", ".join(f"{count} {other}" for other, count in others.items())
    return (
        f"{source}: the shape is {shape}, as of {votes[shape]} of the first {sum(votes.values())} rows (the first: row "
        f"{told}); {counts}. Rows that do not fit it are set aside"
    )


def _two_named(row: dict[str, Any], shape: Shape, columns: Columns) -> str | None:
    compared = compared_of(row, columns) if shape == "compared" else None
    if compared is None or columns.chosen not in row:
        return None
    return (
        f"column {compared.preference!r} says which of {compared.first!r} and {compared.second!r} is better, row by "
        "row; shard.columns.chosen and shard.columns.rejected only name them. Set shard.shape to take them as they are"
    )


def _unread(known: list[tuple[int, dict[str, Any]]], shape: Shape, columns: Columns, source: str) -> str | None:
    """Columns that are likely a part of the prompt, though the recipe does not say so."""
    if shape in ("implicit", "hh") or columns.system is not None:
        return None
    name = next(
        (name for name in SYSTEMS if any(isinstance(row.get(name), str) and row[name] for _, row in known)), None
    )
    if name is not None:
        return (
            f"{source}: column {name!r} is not read. If it is a system message, set shard.columns: {{system: {name}}}"
        )
    asked = prompt_column(known[0][1], columns, PROMPTS)
    if asked == "instruction" and any(isinstance(row.get("input"), str) and row["input"] for _, row in known):
        return f"{source}: column 'input' is not read, and the prompt is 'instruction' alone. Join the two in the rows"
    return None


def _plain_text(sample: list[dict[str, Any]], shape: Shape, columns: Columns, source: str) -> str | None:
    """What plain text may not be meant as: JSON, or a question and an answer without a blank between."""
    if shape not in ("explicit", "labelled"):
        return None
    asked = prompt_column(sample[0], columns) if sample else columns.prompt
    answered = label_columns(sample[0], columns)[0] if sample and shape == "labelled" else columns.chosen
    pairs = [(row.get(asked), row.get(answered)) for row in sample]
    texts = [(one, other) for one, other in pairs if isinstance(one, str) and isinstance(other, str) and one and other]
    if texts and 2 * sum(decoded(other) is not other for _, other in texts) > len(texts):
        return f"{source}: completions are messages as JSON text, trained on as text since shard.shape is {shape}"
    bare = [not (one[-1].isspace() or other[0].isspace() or other.startswith(one.strip())) for one, other in texts]
    if 2 * sum(bare) > max(len(texts), 1):
        return (
            f"{source}: prompts and completions are plain text, joined as they stand, without a blank between. If they "
            "are messages of a chat, set shard.text: chat"
        )
    return None
