"""Control tokens: which there are, what ends a turn, and text that spells them."""

import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from stages.model_files import json_object, split_revision


class Control:
    """The strings of a tokenizer that are no text, and those of them at which a model stops."""

    def __init__(self, tokenizer: Any, stops: Iterable[str]):
        added = tokenizer.added_tokens_decoder.values()
        self.stops = tuple(dict.fromkeys(stops))
        self.start = tokenizer.bos_token
        # Not what is added without being special: Qwen's <think> is one token, and may be text.
        special = {token.content for token in added if token.special} | {*tokenizer.all_special_tokens, *self.stops}
        self.tokens = sorted((token for token in special if token), key=lambda token: (-len(token), token))
        self._pattern = re.compile("|".join(map(re.escape, self.tokens)) or r"(?!)")

    def spelled(self, text: str) -> bool:
        """Whether text would become a control token, at least in part."""
        return self._pattern.search(text) is not None

    def first(self, text: str) -> str:
        found = self._pattern.search(text)
        return found[0] if found else ""

    def masked(self, text: str, name: Callable[[int], str]) -> tuple[str, list[str]]:
        """Text with `name(i)` in the place of the i-th control token, and these."""
        spelled: list[str] = []

        def put_aside(found: re.Match[str]) -> str:
            spelled.append(found[0])
            return name(len(spelled) - 1)

        return (self._pattern.sub(put_aside, text), spelled) if self.spelled(text) else (text, [])

    def halves(self, text: str) -> list[str]:
        """Text in pieces, none of which has a whole control token: each is cut after its first character."""
        cuts = [0, *(found.start() + 1 for found in self._pattern.finditer(text)), len(text)]
        return [text[a:b] for a, b in pairwise(cuts)]

    def end(self, text: str) -> int | None:
        """Where a turn ends that may be closed by more than one token, with white space: after the first of them."""
        end, rest = None, text.rstrip()
        while stop := next((stop for stop in self.stops if rest.endswith(stop)), None):
            end, rest = len(rest), rest[: -len(stop)].rstrip()
        return end

    def first_end(self, text: str) -> int:
        """Where a turn ends of which `text` is the rest and more: after a control token at once, or the first stop."""
        if found := self._pattern.match(text, len(text) - len(text.lstrip())):
            return found.end()
        return min((text.index(stop) + len(stop) for stop in self.stops if stop in text), default=0)

    def without_end(self, text: str) -> str:
        """Without the end tokens that close it, and white space around these."""
        if (end := self.end(text)) is None:
            return text
        stop = next(stop for stop in self.stops if text[:end].endswith(stop))
        return text[: end - len(stop)]


def stops_of(tokenizer: Any, name: str, closings: Iterable[str]) -> dict[str, str]:
    """Token -> who says that a model stops at it: the generation config, the tokenizer, the chat template."""
    generation = [tokenizer.convert_ids_to_tokens(i) for i in _generation_eos(name) if i < len(tokenizer)]
    said = dict.fromkeys(generation, "generation_config.json") | {tokenizer.eos_token: "the tokenizer"}
    for closing in closings:
        said.setdefault(closing, "the chat template")
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return {token: who for token, who in said.items() if token in added or token == tokenizer.eos_token}


def _generation_eos(name: str) -> list[int]:
    """`eos_token_id` of generation_config.json beside the tokenizer; empty where there is none at hand."""
    folder, revision = split_revision(name)
    path = Path(folder) / "generation_config.json"
    if not Path(folder).is_dir():
        from huggingface_hub import hf_hub_download  # slow to import, and only hub names need it

        try:
            path = Path(hf_hub_download(folder, "generation_config.json", revision=revision))
        except Exception:  # a model without one, or a hub out of reach: tokenizer and template say enough
            return []
    if not path.is_file():
        return []
    eos = json_object(path.read_bytes(), str(path)).get("eos_token_id")
    return [i for i in (eos if isinstance(eos, list) else [eos]) if isinstance(i, int)]
