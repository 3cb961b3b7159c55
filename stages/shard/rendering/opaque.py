"""Whether what a template writes depends on what the texts say, or only on which there are.

Most templates put a text between their own words, whatever it says. Then no row has to be written by the template: its
texts go into the skeleton of its outline. Others look: for tags, for a first word. These write each row.
"""

from collections.abc import Iterator
from typing import Any, NoReturn

from jinja2 import Environment, TemplateSyntaxError, nodes

from stages.shard.rendering.messages import REASONING, Message

TEXTS = ("content", *REASONING)
# They hand on what they are given, or ask whether it is there.
_FILTERS = {"trim", "string", "default", "d", "safe", "selectattr", "rejectattr", "map", "list", "first", "last"}
_METHODS = {"get", "items", "keys", "values", "append", "strip"}
# What makes one plain string of several, in which a text would be looked at unseen.
_JOINS = (nodes.Concat, nodes.Mod, nodes.Macro, nodes.CallBlock, nodes.AssignBlock, nodes.FilterBlock)


class Looked(Exception):
    """A template has looked at what a text says."""


def _look(*_: Any, **__: Any) -> NoReturn:
    raise Looked


class Opaque(str):
    """A text that may be written, stripped, and asked whether it is there: nothing else. Raises Looked."""

    def __add__(self, other: str) -> "Opaque":
        return Opaque(str.__add__(self, other))

    def __radd__(self, other: str) -> "Opaque":
        return Opaque(str.__add__(other, self))

    def strip(self, chars: str | None = None, /) -> "Opaque":
        return Opaque(str.strip(self)) if chars is None else _look()

    def __bool__(self) -> bool:
        return str.__len__(self) > 0

    def __str__(self) -> "Opaque":
        return self

    def __iter__(self) -> Iterator[str]:
        yield _look()  # that it has characters may be asked, and not which


_MAY = {*vars(Opaque), "__new__", "__getattribute__", "__init__", "__class__", "__doc__", "__setattr__", "__dir__"}
for _name in (
    {*dir(str)} - _MAY - {"__init_subclass__", "__subclasshook__", "__sizeof__", "__reduce__", "__reduce_ex__"}
):
    setattr(Opaque, _name, _look)


def may_be_blind(template: str) -> bool:
    """Whether texts stay strings of their own in it until they are written, so that Opaque sees who looks at one."""
    try:
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateSyntaxError:  # a tag that only transformers knows
        return False
    filters = {found.name for found in parsed.find_all(nodes.Filter)}
    methods = {found.node.attr for found in parsed.find_all(nodes.Call) if isinstance(found.node, nodes.Getattr)}
    searched = [
        found
        for found in parsed.find_all(nodes.Compare)
        if any(operand.op in ("in", "notin") and not _is_list(operand.expr) for operand in found.ops)
        and not isinstance(found.expr, nodes.Const)
    ]
    return filters <= _FILTERS and methods <= _METHODS and not searched and not any(parsed.find_all(_JOINS))


def _is_list(node: nodes.Node) -> bool:
    return isinstance(node, nodes.List | nodes.Tuple)


def opaque(messages: list[Message]) -> list[Message]:
    """The messages, of which nothing but their roles may be looked at."""
    return [{key: Opaque(value) if key in TEXTS else value for key, value in message.items()} for message in messages]
