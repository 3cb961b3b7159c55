"""Rows under one of the chat templates, and what comes of them as text."""

from collections.abc import Sequence
from typing import Any

from chat_templates import byte_tokenizer

from stages.shard.config import Chat, ShardConfig
from stages.shard.tokenization import Pair, Tokenizer
from stages.shard.triple import Rejected, Triple

THOUGHT = "<think>\nso and so\n</think>\n\nyes"
TIDE = {"type": "function", "function": {"name": "tide", "parameters": {"properties": {"port": {"type": "string"}}}}}
DATE = {"date": "2026-01-31"}
DATED = {"smollm3", "gpt-oss"}


def config(chat: dict[str, Any] | None = None, **fields: Any) -> ShardConfig:
    return ShardConfig(source="x", **{"tokenizer": "/nowhere", "max_length": 2048} | fields, chat=Chat(**chat or {}))


class Family:
    """A tokenizer of a family, and what it makes of rows."""

    def __init__(self, name: str, chat: dict[str, Any] | None = None, hf: Any = None, **fields: Any):
        self.hf = hf if hf is not None else byte_tokenizer(name)
        chat = (DATE if name in DATED else {}) | (chat or {})
        self.ours = Tokenizer(config(chat, **fields), self.hf)

    def made(self, prompt: Any, chosen: Any, rejected: Any = None, **fields: Any) -> Any:
        (made,) = self.ours.tokenize([Triple(prompt, chosen, rejected or [a("other")], **fields)])
        return made

    def text(self, ids: Sequence[int]) -> str:
        return self.hf.decode(ids, clean_up_tokenization_spaces=False)

    def texts(self, prompt: Any, chosen: Any, **fields: Any) -> tuple[str, str]:
        made = self.made(prompt, chosen, **fields)
        assert isinstance(made, Pair), made
        return self.text(made.prompt_ids), self.text(made.chosen_ids)

    def trained(self, made: Pair) -> list[str]:
        edges = made.chosen_trained
        return [self.text(made.chosen_ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]

    def reason(self, prompt: Any, chosen: Any, **fields: Any) -> tuple[str, str]:
        made = self.made(prompt, chosen, **fields)
        assert isinstance(made, Rejected), self.text(made.chosen_ids)
        return made.reason, made.detail


def u(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text} | more


def a(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | more


def s(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def call(arguments: Any) -> list[dict[str, Any]]:
    return [{"id": "c1", "type": "function", "function": {"name": "tide", "arguments": arguments}}]
