"""The chat template of a tokenizer or a recipe: what it writes of messages, and what it is found to do."""

import datetime
import json
import os.path
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stages.errors import RecipeError
from stages.shard.config import Chat
from stages.shard.rendering.calls import as_text, parsed, with_arguments
from stages.shard.rendering.messages import REASONING, Message
from stages.shard.rendering.opaque import may_be_blind
from stages.shard.triple import Rejected

# What `apply_chat_template` takes for itself, and no row may set.
_OWN = {
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize",
    "continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "tokenizer_kwargs", "return_assistant_tokens_mask", "strftime_now",
}  # fmt: skip
_USER = {"role": "user", "content": "qzaskzq"}


class Template:
    """Raises RecipeError where there is none."""

    def __init__(self, tokenizer: Any, chat: Chat, name: str):
        self._tokenizer, self._kwargs = tokenizer, dict(chat.kwargs)
        if wrong := sorted(_OWN & chat.kwargs.keys()):
            raise RecipeError(f"shard.chat.kwargs: {wrong[0]} is set by raydpo, and is not for the template")
        if chat.template is not None:
            tokenizer.chat_template = read_template(chat.template)
        if tokenizer.chat_template is None:
            raise RecipeError(
                f"the set holds lists of messages, and the tokenizer of {name} has no chat template to write them "
                "with. Use the tokenizer of a chat model, name a template's file in shard.chat.template, or give "
                "triples of plain strings"
            )
        self.source = str(tokenizer.chat_template)
        self.may_be_blind = may_be_blind(self.source)
        self._name, self._asks_clock = chat.template or name, "strftime_now" in self.source
        self._date = chat.date
        fixed = chat.date or datetime.date(2026, 1, 31)
        self._kwargs["strftime_now"] = datetime.datetime.combine(fixed, datetime.time()).strftime
        self._reasoning = {key for key in REASONING if re.search(rf"(\.|['\"]){key}\b", self.source)}
        self.header = self._header()
        called, self._as_object, self._as_text = self._calls()
        self.closings = [text for text in (self._closing(), called) if text]

    @property
    def sample(self) -> str:
        """A short dialogue, as far as the template writes one."""
        said = [_USER, {"role": "assistant", "content": "yes"}]
        for messages, prompted in ((said, False), (said[:1], True)):
            try:
                return self.render(messages, prompted)
            except Rejected:
                continue
        return ""

    def check_clock(self) -> None:
        """Raises RecipeError where what is written depends on the day."""
        if self._asks_clock and self._date is None:
            raise RecipeError(
                f"the chat template of {self._name} writes today's date (strftime_now), so that the same rows would "
                "give other tokens tomorrow. Fix the date, for example shard.chat.date: 2026-01-31"
            )

    def render(
        self, messages: list[Message], prompted: bool = False, tools: Any = None, kwargs: dict[str, Any] | None = None
    ) -> str:
        """`prompted`: with the generation prompt. Raises Rejected with what the template says against it."""
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=prompted,
                tools=tools or None,
                **(self._kwargs | (kwargs or {})),
            )
        except RecursionError as error:
            raise Rejected("malformed", "a message is nested too deeply") from error
        except Exception as error:  # whatever a template raises: of its own will, or because it cannot take the row
            said = str(error).strip() or type(error).__name__
            raise Rejected("template", f"the chat template refuses the row: {said}") from error

    def for_template(self, message: Message) -> Message:
        """With reasoning and the arguments of calls in the form that the template reads."""
        given = [key for key in REASONING if message.get(key)]
        if given and self._reasoning and not self._reasoning & set(given):
            renamed = min(self._reasoning)
            message = {key: value for key, value in message.items() if key not in given} | {renamed: message[given[0]]}
        if isinstance(calls := message.get("tool_calls"), list) and self._as_object != self._as_text:
            change = parsed if self._as_object else as_text
            message = message | {"tool_calls": [with_arguments(call, change) for call in calls]}
        return message

    def checked(self, kwargs: Any) -> dict[str, Any]:
        """A row's own kwargs. Raises Rejected."""
        if kwargs is None:
            return {}
        if not isinstance(kwargs, dict) or _OWN & kwargs.keys() or not all(isinstance(key, str) for key in kwargs):
            raise Rejected("malformed", f"these are no kwargs for a chat template: {str(kwargs)[:80]}")
        return kwargs

    def _header(self) -> str:
        """What opens the assistant's turn, where the template writes it on demand."""
        try:
            prompted, plain = self.render([_USER], prompted=True), self.render([_USER])
        except Rejected:
            return ""
        return prompted[len(os.path.commonprefix([prompted, plain])) :]  # noqa: RUF071 - of text, on purpose

    def _closing(self) -> str:
        """What the template writes after an assistant's text, up to white space."""
        try:
            whole = self.render([_USER, {"role": "assistant", "content": "qzsayzq"}])
        except Rejected:
            return ""
        return (whole.rpartition("qzsayzq")[2].split() or [""])[0]

    def _calls(self) -> tuple[str, bool, bool]:
        """What closes a turn that calls a tool; whether the arguments may be an object; and whether JSON text."""
        said = {"port": "qzportzq"}

        def written(arguments: Any) -> str:
            call = {"id": "a12345678", "type": "function", "function": {"name": "tide", "arguments": arguments}}
            try:
                return self.render([_USER, {"role": "assistant", "content": "", "tool_calls": [call]}])
            except Rejected:
                return ""

        as_object, as_text = written(said), written(json.dumps(said))
        may_be_object = "qzportzq" in as_object and "'port'" not in as_object
        after = (as_object if may_be_object else as_text).rpartition("qzportzq")[2].split()
        return (after or [""])[-1], may_be_object, json.dumps(said) in as_text


def read_template(path: str) -> str:
    """A recipe's own template. Raises RecipeError where it cannot be read, or is not Jinja."""
    try:
        source = Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"shard.chat.template: {path} cannot be read: {error}") from error
    try:
        Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"]).compile(source, raw=True)
    except TemplateSyntaxError as error:
        raise RecipeError(
            f"shard.chat.template: line {error.lineno} of {path} is not Jinja: {error.message}. Mend the template"
        ) from error
    return source


def plainly(source: str, messages: list[Message], prompted: bool, special: dict[str, str]) -> str:
    """What a template writes, by Jinja alone, to count it before transformers is imported; `special` are tokens.

    Raises whatever a template raises.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = datetime.datetime(2026, 1, 31).strftime
    return environment.from_string(source).render(messages=messages, add_generation_prompt=prompted, **special)


def _refuse(message: str) -> None:
    raise TemplateError(message)


class _Generation(Extension):
    """{% generation %}, which transformers knows beside Jinja's own tags."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)
