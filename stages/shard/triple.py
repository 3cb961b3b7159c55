"""One row as it was read -> the triples or labelled completions that it holds, by the shape of its set."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from stages.shard.config import Columns, Pairing, Shape, ShardConfig, Source
from stages.shard.reading.opening import problem_of
from stages.shard.shapes.cells import margin_of, number
from stages.shard.shapes.compared import compared_triple
from stages.shard.shapes.finish import with_finish
from stages.shard.shapes.known import compared_of, in_our_words
from stages.shard.shapes.messages import json_list, json_object, refuse_media
from stages.shard.shapes.paired import labelled_of, triple_of
from stages.shard.shapes.ranked import ranked_of
from stages.shard.shapes.repeats import SYSTEM
from stages.shard.shapes.row import Labelled, Malformed, Message, Rejected, Triple

__all__ = ["Labelled", "Malformed", "Message", "Rejected", "Triple", "made_of", "outcomes", "parse", "read"]

Outcome = Triple | Labelled | Rejected


def read(row: str, shape: Shape, source: Source, config: ShardConfig) -> list[Outcome]:
    """`outcomes` of a row of a source, as the recipe says."""
    return outcomes(
        row,
        shape,
        source.columns,
        pairing=source.pairing,
        negative_margin=source.negative_margin,
        text=source.text,
        tools_column=config.chat.tools_column,
        kwargs_column=config.chat.kwargs_column,
        unrolled=config.rows == "labelled",
    )


def parse(row: str | dict[str, Any], shape: Shape, columns: Columns, **how: Any) -> list[Triple | Labelled]:
    """What a row holds, never nothing; of the shape "labelled" a Labelled. Raises Malformed or another Rejected.

    `how` are the keywords of `outcomes`.
    """
    return made_of(outcomes(row, shape, columns, **how))


def made_of(found: Sequence[Outcome]) -> list[Triple | Labelled]:
    """Never nothing: raises the first Rejected where there is nothing else."""
    made = [each for each in found if not isinstance(each, Rejected)]
    if not made:
        raise next(each for each in found if isinstance(each, Rejected))
    return made


def outcomes(
    row: str | dict[str, Any],
    shape: Shape,
    columns: Columns,
    *,
    pairing: Pairing = "best_worst",
    negative_margin: Literal["swap", "reject"] = "reject",
    text: Literal["auto", "plain", "chat"] = "auto",
    tools_column: str | None = "tools",
    kwargs_column: str | None = None,
    unrolled: bool = False,
) -> list[Outcome]:
    """All that comes of a row (JSON text, or the row itself), never nothing and never an error: the triples or labelled
    completions, and a Rejected for each that it does not make. `shape` is that of the set, not "auto".

    `unrolled`: two labelled completions instead of each triple whose sides differ.
    """
    try:
        row = in_our_words(_row_of(row), columns)
        refuse_media(row)
        chat = text == "chat" or (text == "auto" and (shape in ("ranked", "compared") or columns.system is not None))
        found: list[Outcome]
        if shape == "labelled":
            found = [with_finish(labelled_of(row, columns, chat), row, columns)]
        elif shape == "ranked":
            found = list(ranked_of(row, columns, pairing, chat))
        elif shape == "compared":
            found = [compared_triple(row, columns, chat)]
            if (verdict := compared_of(row, columns)) and verdict.preference == columns.margin:
                columns = columns.model_copy(update={"margin": None})  # it is the strength, whose sign has been read
        else:
            found = [with_finish(triple_of(row, shape, columns, chat), row, columns)]
        found = [_whole(each, row, columns, negative_margin, tools_column, kwargs_column) for each in found]
        return [one for each in found for one in _unrolled(each)] if unrolled else found
    except Rejected as error:
        return [error]
    except RecursionError:
        return [Malformed("nested too deeply")]


def _unrolled(each: Outcome) -> Sequence[Outcome]:
    return each.unrolled() if isinstance(each, Triple) and each.chosen != each.rejected else [each]


def _row_of(row: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(row, str):
        try:
            row = json.loads(row)
        except ValueError as error:  # also of a number with more digits than Python reads
            raise Malformed(problem_of(str(row)) or f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise Malformed(f"not a JSON object but a {type(row).__name__}")
    return row


def _whole(
    made: Outcome,
    row: dict[str, Any],
    columns: Columns,
    negative_margin: str,
    tools_column: str | None,
    kwargs_column: str | None,
) -> Outcome:
    """With what stands in columns of its own: margin, weight, system message, tools and what the template is told."""
    if isinstance(made, Rejected):
        return made
    try:
        if columns.margin and isinstance(made, Triple):
            made = _with_margin(made, margin_of(row, columns.margin), columns.margin, negative_margin)
        if columns.weight:
            made = replace(made, weight=_weight(row, columns.weight))
        if isinstance(made.prompt, str):  # plain text, which no template reads
            return made
        if columns.system and row.get(columns.system):
            made = replace(made, prompt=_with_system(made.prompt, row[columns.system], columns.system))
        tools = json_list(row.get(tools_column), f"column {tools_column!r}") if tools_column else None
        kwargs = json_object(row.get(kwargs_column), f"column {kwargs_column!r}") if kwargs_column else None
        return made if tools is None and kwargs is None else replace(made, tools=tools, chat_kwargs=kwargs)
    except Rejected as error:
        return error


def _with_margin(triple: Triple, margin: float, name: str, negative: str) -> Triple:
    if margin >= 0:
        return replace(triple, margin=margin)
    if negative == "swap":
        return replace(
            triple, chosen=triple.rejected, rejected=triple.chosen, margin=-margin,
            chosen_cut=triple.rejected_cut, rejected_cut=triple.chosen_cut,
        )  # fmt: skip
    raise Rejected(
        "margin",
        f"column {name!r} is {margin:g}: by this the rejected one is better. Set shard.negative_margin: swap to "
        "exchange the two",
    )


def _weight(row: dict[str, Any], name: str) -> float:
    weight = number(row.get(name), f"column {name!r}")
    if weight < 0:
        raise Malformed(f"column {name!r} is {weight:g}, and no pair has a weight below 0")
    return weight


def _with_system(prompt: list[Message], system: Any, name: str) -> list[Message]:
    if not isinstance(system, str):
        raise Malformed(f"column {name!r} is a {type(system).__name__}, not text")
    if prompt and prompt[0]["role"] in SYSTEM:
        if prompt[0]["content"] != system:
            raise Malformed(f"column {name!r} is not the system message that the prompt has")
        return prompt
    return [{"role": "system", "content": system}, *prompt]
