"""A row as a person meant it, and why a row is none."""

from dataclasses import dataclass
from typing import Any

from stages.errors import printable

Message = dict[str, Any]  # {"role", "content", maybe "tool_calls", "reasoning_content", "name", "tool_call_id" ..}
Text = str | list[Message]


@dataclass(frozen=True)
class Triple:
    """All three are strings, or all are lists of messages, to which a chat template applies."""

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float | None = None  # how much better chosen is; never negative
    weight: float = 1.0  # of the pair in the loss
    tools: list[dict[str, Any]] | None = None  # JSON schemas, for the template
    chat_kwargs: dict[str, Any] | None = None  # of this row, for the template
    chosen_cut: bool = False  # when it was sampled: it has no end that could be learnt
    rejected_cut: bool = False

    def unrolled(self) -> "list[Labelled]":
        sides = (self.chosen, True, self.chosen_cut), (self.rejected, False, self.rejected_cut)
        rest = self.weight, self.tools, self.chat_kwargs
        return [Labelled(self.prompt, completion, label, *rest, cut) for completion, label, cut in sides]


@dataclass(frozen=True)
class Labelled:
    """A prompt, one completion, and whether it is desirable."""

    prompt: Text
    completion: Text
    label: bool
    weight: float = 1.0
    tools: list[dict[str, Any]] | None = None
    chat_kwargs: dict[str, Any] | None = None
    cut: bool = False


class Rejected(ValueError):
    """This row makes no pair: a reason to count by, and the detail for a person."""

    def __init__(self, reason: str, detail: str):
        detail = printable(detail)  # it may quote the row
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class Malformed(Rejected):
    """This row does not have the shape of its set. It is set aside; the message becomes its `detail`."""

    def __init__(self, detail: str):
        super().__init__("malformed", detail)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Malformed, (self.detail,)

    def __str__(self) -> str:
        return self.detail
