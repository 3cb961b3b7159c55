"""Triples of text -> pairs of token ids: the only place where text becomes tokens."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.errors import RecipeError
from stages.model_files import tokenizer_at
from stages.shard.config import ShardConfig
from stages.shard.triple import Labelled, Triple


class Rejected(ValueError):
    """This triple makes no pair: a reason to count by, and the detail for a person."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Pair:
    """Token ids of one triple. Each completion ends with the end token, unless `cut_completions` counts it."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    cut_prompt: bool
    cut_completions: int  # 0, 1 or 2 of them were cut at max_length

    @property
    def pair_id(self) -> str:
        """32 hex digits that follow from the three id lists alone."""
        return hash_of(self.prompt_ids, self.chosen_ids, self.rejected_ids)


@dataclass(frozen=True)
class Completion:
    """Token ids of a labelled completion, which ends with the end token, unless it was cut."""

    prompt_ids: list[int]
    completion_ids: list[int]
    label: bool
    cut_prompt: bool
    cut_completions: int  # 0 or 1

    @property
    def row_id(self) -> str:
        """16 hex digits that follow from the ids and the label."""
        return hash_of(self.prompt_ids, self.completion_ids, [int(self.label)])[:16]


def hash_of(*lists: list[int]) -> str:
    """32 hex digits."""
    digest = hashlib.sha256()
    for ids in lists:
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(np.asarray(ids, "<i4").tobytes())
    return digest.hexdigest()[:32]


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model folder or hub name. Raises RecipeError where it names no end token."""
    from transformers import AutoTokenizer

    folder, revision = tokenizer_at(name)
    tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision)
    if tokenizer.eos_token_id is None:
        raise RecipeError(f"the tokenizer of {name} names no end token (eos_token), and completions must end with one")
    return tokenizer


def tokenize(triple: Triple, tokenizer: Any, config: ShardConfig) -> Pair:
    """Tokenize, end and truncate one triple. Raises Rejected."""
    if triple.chosen == triple.rejected:
        raise Rejected("equal", "chosen and rejected are the same text")
    texts = {"chosen": triple.chosen, "rejected": triple.rejected}
    prompt, (chosen, rejected), cut_prompt, cut = _truncate(*_ids(triple.prompt, texts, tokenizer), config)
    if chosen == rejected:
        if cut:
            raise Rejected("too_long", f"both completions are alike in the {len(chosen)} tokens that are left of them")
        raise Rejected("equal", "chosen and rejected are the same tokens")
    return Pair(prompt, chosen, rejected, cut_prompt, cut)


def tokenize_labelled(row: Labelled, tokenizer: Any, config: ShardConfig) -> Completion:
    """The same of a labelled completion."""
    ids = _ids(row.prompt, {"completion": row.completion}, tokenizer)
    prompt, (completion,), cut_prompt, cut = _truncate(*ids, config)
    return Completion(prompt, completion, row.label, cut_prompt, cut)


def _ids(prompt: Any, texts: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[list[int]]]:
    """Of the prompt and of each completion: strings, or lists of messages."""
    return (_plain if isinstance(prompt, str) else _templated)(prompt, texts, tokenizer)


def _plain(prompt: str, texts: dict[str, str], tokenizer: Any) -> tuple[list[int], list[list[int]]]:
    """Text is joined as it stands; the tokenizer's own start token, if it adds one, opens the prompt."""
    for name, text in ({"prompt": prompt} | texts).items():
        if not text.strip():
            raise Rejected("empty", f"{name} is empty")
    end = tokenizer.eos_token_id
    ids = tokenizer(prompt)["input_ids"]
    ids = ids[:-1] if ids[-1] == end else ids  # some tokenizers close every text with the end token
    return ids, [tokenizer(text, add_special_tokens=False)["input_ids"] + [end] for text in texts.values()]


def _templated(
    dialogue: list[dict[str, Any]], texts: dict[str, list[dict[str, Any]]], tokenizer: Any
) -> tuple[list[int], list[list[int]]]:
    """The chat template writes the dialogue; a completion is what it adds to the rendered prompt."""
    if not dialogue:
        raise Rejected("empty", "no message comes before the completions")
    prompt = _render(dialogue, tokenizer, add_generation_prompt=True)
    sides = []
    for name, messages in texts.items():
        if not any(message["content"].strip() for message in messages):
            raise Rejected("empty", f"{name} is empty")
        whole = _render([*dialogue, *messages], tokenizer)
        if not whole.startswith(prompt):
            raise Rejected("malformed", f"the chat template does not render {name} as a continuation of the prompt")
        ids = tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
        sides.append(_ended(ids, tokenizer))
    return tokenizer(prompt, add_special_tokens=False)["input_ids"], sides


def _render(messages: list[dict[str, Any]], tokenizer: Any, add_generation_prompt: bool = False) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)


def _ended(ids: list[int], tokenizer: Any) -> list[int]:
    """Exactly one end token, last. White space that a template writes after it is never generated: it goes."""
    end = tokenizer.eos_token_id
    if end in ids:
        last = len(ids) - 1 - ids[::-1].index(end)
        if not tokenizer.decode(ids[last + 1 :]).strip():
            return ids[: last + 1]
    return [*ids, end]


def _truncate(
    prompt: list[int], completions: list[list[int]], config: ShardConfig
) -> tuple[list[int], list[list[int]], bool, int]:
    """First the prompt gives way, down to max_prompt_length; then the completions are cut at their end.

    Returns both, whether the prompt was cut, and how many of the completions were.
    """
    longest = max(map(len, completions))
    length = len(prompt) + longest
    if length > config.max_length and config.truncation == "drop":
        raise Rejected("too_long", f"{length} tokens, and max_length is {config.max_length}")
    kept = min(config.max_prompt_length or config.max_length // 2, config.max_length - 1)
    room = max(config.max_length - longest, min(kept, len(prompt)))
    cut_prompt = len(prompt) > room
    if cut_prompt:
        prompt = prompt[-room:] if config.truncation == "keep_end" else prompt[:room]
    left = config.max_length - len(prompt)
    return prompt, [ids[:left] for ids in completions], cut_prompt, sum(len(ids) > left for ids in completions)
