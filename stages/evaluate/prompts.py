"""What both models are asked: the prompts of held-out pairs, or those of a file."""

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.artifacts import PreferencePairs
from stages.errors import RecipeError
from stages.model_files import tokenizer_at

PROMPTS = pa.schema([("prompt_id", pa.string()), ("split", pa.string()), ("ids", pa.list_(pa.int32()))])


def id_of(ids: list[int]) -> str:
    """16 hex digits."""
    return blake2b(np.asarray(ids, "<i4").tobytes(), digest_size=8).hexdigest()


def of_pairs(pairs: PreferencePairs, most: int) -> pa.Table:
    """PROMPTS of held-out rows, each once, in the order of their ids, which are hashes: so the first are any."""
    found: dict[str, dict[str, Any]] = {}
    for part in pairs.parts:
        table = pairs.columns(part, ["split", "prompt_ids"])
        for row in table.filter(pa.array([split != "train" for split in table["split"].to_pylist()])).to_pylist():
            if ids := row["prompt_ids"]:  # an engine starts from something
                found.setdefault(name := id_of(ids), {"prompt_id": name, "split": row["split"], "ids": ids})
    return pa.Table.from_pylist([found[name] for name in sorted(found)[:most]], schema=PROMPTS)


def of_file(path: Path, tokenizer: str, most: int) -> pa.Table:
    """The same of a file: a text a line, or a JSON object a line with `prompt`, a text or a list of messages.

    A text is a user's message where the tokenizer has a chat template. Raises RecipeError for what is no prompt.
    """
    from transformers import AutoTokenizer  # seconds, which the driver need not spend

    folder, revision = tokenizer_at(tokenizer)
    own = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
    found = {}
    for prompt in _read(path):
        if isinstance(prompt, str) and own.chat_template is None:
            ids = own(prompt).input_ids
        else:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            text = own.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = own(text, add_special_tokens=False).input_ids
        name = id_of(ids)
        found[name] = {"prompt_id": name, "split": "prompts", "ids": ids}
    return pa.Table.from_pylist([found[name] for name in sorted(found)[:most]], schema=PROMPTS)


def _read(path: Path) -> Iterator[str | list[dict[str, Any]]]:
    objects = path.suffix in (".jsonl", ".ndjson")
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"] if objects else line
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f"evaluate.prompts: line {number} of {path} is no object with a prompt: {error}"
            ) from None
        if not (isinstance(prompt, str) or _is_dialogue(prompt)):
            raise RecipeError(
                f"evaluate.prompts: the prompt in line {number} of {path} is neither text nor a list of messages"
            )
        yield prompt


def _is_dialogue(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(m, dict) and "role" in m for m in prompt)
