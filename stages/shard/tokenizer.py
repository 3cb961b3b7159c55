"""A batch of rows -> their token ids, with the tokenizer called once for all their texts."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from stages.errors import RecipeError
from stages.shard.config import ShardConfig
from stages.shard.encoding import Encoder
from stages.shard.tokenization import Completion, Pair, Rejected, _render, _truncate, load_tokenizer
from stages.shard.triple import Labelled, Triple


class Tokenizer:
    """Made once a worker process. Raises RecipeError where the tokenizer cannot serve."""

    def __init__(self, config: ShardConfig):
        self.notices: list[str] = []
        self._config, self._tokenizer = config, load_tokenizer(config.tokenizer)
        self._encode = Encoder(self._tokenizer)
        self._is_blank = lru_cache(10_000)(lambda ids: not self._tokenizer.decode(ids).strip())

    def tokenize(self, rows: Sequence[Triple | Labelled]) -> list[Pair | Completion | Rejected]:
        """One a row, in order."""
        texts = [self._texts(row) for row in rows]
        try:
            ids = iter(self._ids([each for each in texts if not isinstance(each, Rejected)]))
        except (UnicodeError, TypeError, ValueError) as error:  # of one text; which one, the others by themselves tell
            if len(rows) > 1:
                return [made for row in rows for made in self.tokenize([row])]
            return [Rejected("malformed", f"the tokenizer cannot read a text of this row: {error}")]
        return [
            each if isinstance(each, Rejected) else self._made(row, *next(ids))
            for row, each in zip(rows, texts, strict=True)
        ]

    def _texts(self, row: Triple | Labelled) -> "tuple[bool, str, list[str]] | Rejected":
        """(whether of messages, prompt, completions)."""
        if not isinstance(row.prompt, str) and self._tokenizer.chat_template is None:
            raise RecipeError(
                f"{self._config.source} holds lists of messages, and the tokenizer of {self._config.tokenizer} has no "
                "chat template to write them with. Use the tokenizer of a chat model, or triples of plain strings"
            )
        if isinstance(row, Triple) and row.chosen == row.rejected:
            return Rejected("equal", "chosen and rejected are the same text")
        if isinstance(row, Triple):
            sides = {"chosen": row.chosen, "rejected": row.rejected}
        else:
            sides = {"completion": row.completion}
        try:
            if isinstance(row.prompt, str):
                return False, *_plain(row.prompt, sides)
            return True, *self._templated(row.prompt, sides)
        except Rejected as rejected:
            return rejected

    def _templated(self, dialogue: list[dict[str, Any]], sides: dict[str, Any]) -> tuple[str, list[str]]:
        if not dialogue:
            raise Rejected("empty", "no message comes before the completions")
        prompt, texts = _render(dialogue, self._tokenizer, add_generation_prompt=True), []
        for name, messages in sides.items():
            if not any(message["content"].strip() for message in messages):
                raise Rejected("empty", f"{name} is empty")
            whole = _render([*dialogue, *messages], self._tokenizer)
            if not whole.startswith(prompt):
                raise Rejected("malformed", f"the chat template does not render {name} as a continuation of the prompt")
            texts.append(whole[len(prompt) :])
        return prompt, texts

    def _ids(self, texts: list[tuple[bool, str, list[str]]]) -> list[tuple[list[int], list[list[int]]]]:
        opened = iter(self._encode([prompt for of_messages, prompt, _ in texts if not of_messages], True))
        bare = iter(self._encode([t for m, prompt, sides in texts for t in ([prompt] if m else []) + sides]))
        end, found = self._tokenizer.eos_token_id, []
        for of_messages, _, sides in texts:
            prompt = next(bare if of_messages else opened)
            if not of_messages and prompt[-1] == end:  # some tokenizers close every text with the end token
                prompt = prompt[:-1]
            found.append((prompt, [self._ended(next(bare)) if of_messages else [*next(bare), end] for _ in sides]))
        return found

    def _ended(self, ids: list[int]) -> list[int]:
        end = self._tokenizer.eos_token_id
        if end in ids:
            last = len(ids) - 1 - ids[::-1].index(end)
            if self._is_blank(tuple(ids[last + 1 :])):
                return ids[: last + 1]
        return [*ids, end]

    def _made(self, row: Triple | Labelled, prompt: list[int], sides: list[list[int]]) -> Pair | Completion | Rejected:
        try:
            prompt, sides, cut_prompt, cut = _truncate(prompt, sides, self._config)
        except Rejected as rejected:
            return rejected
        if isinstance(row, Labelled):
            return Completion(prompt, sides[0], row.label, cut_prompt, cut)
        chosen, rejected_ids = sides
        if chosen == rejected_ids:
            left = f"both completions are alike in the {len(chosen)} tokens that are left of them"
            return Rejected("too_long", left) if cut else Rejected("equal", "chosen and rejected are the same tokens")
        return Pair(prompt, chosen, rejected_ids, cut_prompt, cut)


def _plain(prompt: str, sides: dict[str, Any]) -> tuple[str, list[str]]:
    for name, text in ({"prompt": prompt} | sides).items():
        if not text.strip():
            raise Rejected("empty", f"{name} is empty")
    return prompt, list(sides.values())
