"""Pairs as a model sees them, and rows that made none: for people to look at before they spend."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from stages import schema
from stages import spans as spans_of
from stages.artifacts import PreferencePairs
from stages.shard.tokenization import load_tokenizer

LEGEND = "⟦trained⟧ ⟪special token⟫ ⏎ newline"
_NEWLINE = "⏎"


class Run(NamedTuple):
    """Tokens that stand together and are alike."""

    text: str
    trained: bool
    special: bool


def read_pairs(pairs: PreferencePairs, count: int, tokenizer_name: str) -> list[dict[str, Any]]:
    """The first pairs of an artifact, decoded. They are in the order of their hash: a sample of the set."""
    rows = list(islice(pairs.rows(), count))
    tokenizer = load_tokenizer(tokenizer_name) if rows else None
    return [_decoded(row, tokenizer) for row in rows]


def read_rejects(pairs: PreferencePairs, count: int) -> dict[str, Any]:
    """How many rows were set aside for which reason, and examples: the first of each reason, then others."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[dict[str, Any]]] = {}
    for row in pairs.rejects():
        counts[row["reason"]] += 1
        found = examples.setdefault(row["reason"], [])
        if len(found) < count:
            found.append(row)
    in_turn = [found[i] for i in range(count) for found in examples.values() if i < len(found)]
    return {"reasons": dict(counts.most_common()), "rows": in_turn[: max(count, len(examples))]}


def print_pairs(pairs: list[dict[str, Any]], console: Console) -> None:
    if pairs:
        console.print(Text(LEGEND, "dim"))
    for pair in pairs:
        label = {None: "", True: "  desirable", False: "  undesirable"}[pair.get("label")]
        margin = f"  margin {pair['margin']:g}" if pair.get("margin") is not None else ""
        head = f"{pair['source']} row {pair['source_row']}  {pair['split']}{label}{margin}  {pair['pair_id']}"
        console.print(Text(f"\n{head}", "bold"), soft_wrap=True)
        for name, style in (("prompt", "dim"), *((side, "") for side in schema.sides(pair))):
            runs = [Run(**run) for run in pair[name]]
            console.print(Text(f"{name}  ", "bold cyan") + _marked(runs, style), soft_wrap=True)


def print_rejects(rejects: dict[str, Any], console: Console) -> None:
    """With the row as it was read, cut to what the terminal takes on two lines."""
    told = ", ".join(f"{number:,} {reason}" for reason, number in rejects["reasons"].items()) or "none"
    console.print(Text(f"\nrows set aside: {told}", "bold"), soft_wrap=True)
    for row in rejects["rows"]:
        console.print(
            Text(f"\n{row['source']} row {row['source_row']}  {row['reason']}: {row['detail']}", "yellow"),
            soft_wrap=True,
        )
        text = row["row"].replace("\n", _NEWLINE)
        most = 2 * console.width
        console.print(Text(text if len(text) <= most else f"{text[: most - 2]}..", "dim"), soft_wrap=True)


def _decoded(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    sides = schema.sides(row)
    shown = {key: value for key, value in row.items() if not isinstance(value, list)}
    for name in ("prompt", *sides):
        ids = row[f"{name}_ids"]
        spans = row.get(f"{name}_trained", [] if name == "prompt" else [0, len(ids)])
        shown[name] = [run._asdict() for run in _runs(ids, spans, tokenizer)]
    return shown


def _runs(ids: list[int], spans: list[int], tokenizer: Any) -> Iterator[Run]:
    """Cut where marks change. Each text is what decoding goes on by, so that blanks between tokens stay."""
    special = set(tokenizer.all_special_ids) | {
        i for i, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    trained = spans_of.marks(len(ids), spans).tolist()
    marks = [
        (is_trained, each in special, each if each in special else None)
        for is_trained, each in zip(trained, ids, strict=True)
    ]
    start, before = 0, ""
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or marks[stop] != marks[start] or marks[start][1]:
            whole = tokenizer.decode(ids[:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            yield Run(whole[len(before) :], *marks[start][:2])
            start, before = stop, whole


def _marked(runs: list[Run], style: str) -> Text:
    """Brackets and colours around what is trained; a special token by its name; newlines that can be seen."""
    text, inside = Text(), False
    for run in runs:
        if run.trained != inside:
            text.append("⟦" if run.trained else "⟧", "green")
            inside = run.trained
        shown = f"⟪{run.text.strip()}⟫" if run.special else run.text.replace("\n", f"{_NEWLINE}\n")
        text.append(shown, "magenta" if run.special else "green" if run.trained else style)
    return text.append("⟧" if inside else "", "green")


def as_json(pairs: list[dict[str, Any]] | None, rejects: dict[str, Any] | None) -> str:
    told = {"pairs": pairs, "rejects": rejects}
    return json.dumps({key: value for key, value in told.items() if value is not None}, indent=1, ensure_ascii=False)
