"""Triples of text -> pairs of token ids: the only place where text becomes tokens."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.errors import RecipeError
from stages.model_files import split_revision
from stages.shard.config import ShardConfig
from stages.shard.triple import Triple


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
        digest = hashlib.sha256()
        for ids in (self.prompt_ids, self.chosen_ids, self.rejected_ids):
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(np.asarray(ids, "<i4").tobytes())
        return digest.hexdigest()[:32]


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model folder or hub name. Raises RecipeError where it names no end token."""
    from transformers import AutoTokenizer

    folder, revision = split_revision(name)
    tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision)
    if tokenizer.eos_token_id is None:
        raise RecipeError(f"the tokenizer of {name} names no end token (eos_token), and completions must end with one")
    return tokenizer


def tokenize(triple: Triple, tokenizer: Any, config: ShardConfig) -> Pair:
    """Tokenize, end and truncate one triple. Raises Rejected."""
    if triple.chosen == triple.rejected:
        raise Rejected("equal", "chosen and rejected are the same text")
    if isinstance(triple.prompt, str):
        prompt, chosen, rejected = _plain(triple, tokenizer)
    else:
        prompt, chosen, rejected = _templated(triple, tokenizer)
    return _truncate(prompt, chosen, rejected, config)


def _plain(triple: Triple, tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """Text is joined as it stands; the tokenizer's own start token, if it adds one, opens the prompt."""
    for name in ("prompt", "chosen", "rejected"):
        if not getattr(triple, name).strip():
            raise Rejected("empty", f"{name} is empty")
    end = tokenizer.eos_token_id
    prompt = tokenizer(triple.prompt)["input_ids"]
    prompt = prompt[:-1] if prompt[-1] == end else prompt  # some tokenizers close every text with the end token
    chosen, rejected = (
        tokenizer(text, add_special_tokens=False)["input_ids"] + [end] for text in (triple.chosen, triple.rejected)
    )
    return prompt, chosen, rejected


def _templated(triple: Triple, tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """The chat template writes the dialogue; a completion is what it adds to the rendered prompt."""
    if not triple.prompt:
        raise Rejected("empty", "no message comes before the completions")
    assert isinstance(triple.prompt, list)
    prompt = _render(triple.prompt, tokenizer, add_generation_prompt=True)
    sides = []
    for name in ("chosen", "rejected"):
        messages = getattr(triple, name)
        if not any(message["content"].strip() for message in messages):
            raise Rejected("empty", f"{name} is empty")
        whole = _render([*triple.prompt, *messages], tokenizer)
        if not whole.startswith(prompt):
            raise Rejected("malformed", f"the chat template does not render {name} as a continuation of the prompt")
        ids = tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
        sides.append(_ended(ids, tokenizer))
    return tokenizer(prompt, add_special_tokens=False)["input_ids"], sides[0], sides[1]


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


def _truncate(prompt: list[int], chosen: list[int], rejected: list[int], config: ShardConfig) -> Pair:
    """First the prompt gives way, down to max_prompt_length; then the completions are cut at their end."""
    longest = max(len(chosen), len(rejected))
    length = len(prompt) + longest
    if length > config.max_length and config.truncation == "drop":
        raise Rejected("too_long", f"{length} tokens, and max_length is {config.max_length}")
    kept = min(config.max_prompt_length or config.max_length // 2, config.max_length - 1)
    room = max(config.max_length - longest, min(kept, len(prompt)))
    cut_prompt = len(prompt) > room
    if cut_prompt:
        prompt = prompt[-room:] if config.truncation == "keep_end" else prompt[:room]
    left = config.max_length - len(prompt)
    cut_completions = (len(chosen) > left) + (len(rejected) > left)
    chosen, rejected = chosen[:left], rejected[:left]
    if chosen == rejected:
        if cut_completions:
            raise Rejected("too_long", f"both completions are alike in the {left} tokens that max_length leaves them")
        raise Rejected("equal", "chosen and rejected are the same tokens")
    return Pair(prompt, chosen, rejected, cut_prompt, cut_completions)
