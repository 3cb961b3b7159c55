"""Rows as `shard` reads them -> prompts, each once, as token ids, in fixed parts on disk."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages import schema
from stages.names import part_name
from stages.sample.asked import as_shard, is_chat, prompt_of, told_of_sample
from stages.sample.config import SampleConfig
from stages.samples import PROMPTS
from stages.shard.reading.survey import slices
from stages.shard.shapes.row import Labelled, Rejected, Text
from stages.shard.tokenization import Completion, Tokenizer, hash_of, load_tokenizer

_ROWS = 500  # tokenized at once
_PER_PART = 256  # completions
_ANSWER = "x"  # a prompt is written as it stands before an answer
FACTS = "facts.json"


def write_prompts(config: SampleConfig, folder: Path) -> dict[str, Any]:
    """Parts of PROMPTS and `rejects.parquet` (schema.REJECTS) under `folder`; returns what is known of them.

    It holds all prompts in memory: 2 GB for a million. Raises RecipeError for a source or a tokenizer that cannot
    serve.
    """
    if (folder / FACTS).exists():
        return json.loads((folder / FACTS).read_text())
    folder.mkdir(parents=True, exist_ok=True)
    with told_of_sample():
        found, aside, rows = _read(config)
    auto = min(-(-rows * config.num_samples // _PER_PART), rows)
    num_parts = auto if config.num_parts == "auto" else config.num_parts
    parts: list[list[dict[str, Any]]] = [[] for _ in range(num_parts)]
    for name in sorted(found):
        parts[int(name[:8], 16) % num_parts].append(found[name])
    for number, part in enumerate(parts):
        schema.write_part(pa.Table.from_pylist(part, schema=PROMPTS), part_of(folder, number))
    schema.write_part(pa.Table.from_pylist(aside, schema=schema.REJECTS), folder / "rejects.parquet")
    ids = [each["prompt_ids"] for each in found.values()]
    facts = {
        "rows": rows,
        "prompts": len(found),
        "num_parts": num_parts,
        "dropped": dict(sorted(Counter(each["reason"] for each in aside).items())),
        "longest": max(map(len, ids), default=0),
        "largest_id": max(map(max, ids), default=0),
        "chat": any(each["prompt"].startswith("[") for each in found.values()),
    }
    unfinished = folder / f".{FACTS}"
    unfinished.write_text(json.dumps(facts))
    unfinished.rename(folder / FACTS)
    return facts


def part_of(folder: Path, number: int) -> Path:
    return folder / part_name(number)


def _read(config: SampleConfig) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], int]:
    """Rows of PROMPTS by id, of schema.REJECTS, and how many there were."""
    read_as = as_shard(config)
    own = load_tokenizer(config.tokenizer)
    tokenizer = Tokenizer(read_as, own)
    chat = is_chat(config, bool(config.chat.template or own.chat_template))
    found: dict[str, dict[str, Any]] = {}
    aside: list[dict[str, Any]] = []
    numbered = (
        (piece.name, number, text) for piece in slices(read_as, rows_per_task=10_000) for number, text in piece.rows()
    )
    count = 0
    while batch := list(islice(numbered, _ROWS)):
        count += len(batch)
        for (name, number, text), made in zip(batch, _tokenized(batch, tokenizer, config, chat), strict=True):
            row: dict[str, Any] = {"source": name, "source_row": number}
            if not isinstance(made, Rejected):
                asked, ids = made
                told = json.dumps(asked, ensure_ascii=False)
                row |= {"prompt_id": hash_of(ids), "prompt": told, "prompt_ids": ids}
                if (first := found.setdefault(row["prompt_id"], row)) is row:
                    continue
                made = Rejected("duplicate", f"the same tokens as row {first['source_row']} of {first['source']}")
            aside.append(row_of_reject(row, made.reason, made.detail, text))
    return found, aside, count


def row_of_reject(row: dict[str, Any], reason: str, detail: str, text: str) -> dict[str, Any]:
    return {name: row[name] for name in ("source", "source_row")} | {"reason": reason, "detail": detail, "row": text}


def _tokenized(
    batch: list[tuple[str, int, str]], tokenizer: Tokenizer, config: SampleConfig, chat: bool
) -> Iterator[tuple[Text, list[int]] | Rejected]:
    """(prompt, ids) of each row."""
    asked: list[Text | Rejected] = []
    for _, _, text in batch:
        try:
            asked.append(prompt_of(text, config, chat))
        except Rejected as error:
            asked.append(error.with_traceback(None))
    rows = [
        Labelled(each, _ANSWER if isinstance(each, str) else [{"role": "assistant", "content": _ANSWER}], True)
        for each in asked
        if not isinstance(each, Rejected)
    ]
    made = iter(tokenizer.tokenize(rows))
    for each in asked:
        tokens = each if isinstance(each, Rejected) else next(made)
        if isinstance(tokens, Completion) and len(tokens.prompt_ids) > config.max_prompt_length:
            told = f"{len(tokens.prompt_ids)} tokens, and sample.max_prompt_length is {config.max_prompt_length}"
            tokens = Rejected("too_long", told)
        if isinstance(tokens, Rejected):
            yield tokens
        else:
            assert isinstance(tokens, Completion)
            assert not isinstance(each, Rejected)
            yield each, tokens.prompt_ids
