"""What a template writes around the texts of a dialogue, which of it is prompt, and which of it is trained.

Found on sentinels in the place of the texts (messages.py), so that no text can be taken for the template's own words.
"""

import os.path
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from stages.shard.rendering.calls import emptied_of, function_of, with_arguments
from stages.shard.rendering.control import Control
from stages.shard.rendering.dialogue import Dialogue
from stages.shard.rendering.messages import SENTINEL, Message, Part, parts_of, sentinel
from stages.shard.rendering.opaque import TEXTS, opaque
from stages.shard.rendering.template import Template
from stages.shard.triple import Rejected

# White space at the ends of a text is written by escapes there.
_QUOTED = re.compile(r'"(\\[nrtf]|\s)*$'), re.compile(r'(\\[nrtf]|\s)*"')
_OPENED = re.compile(r"<think>\s*$")


class Lost(Exception):
    """The template does not write a text as often as the row says it."""

    def __init__(self, reason: str, hole: int, said: str):
        super().__init__(reason, hole, said)
        self.reason, self.hole, self.said = reason, hole, said


class Section(NamedTuple):
    """A run of a completion."""

    trained: bool
    parts: list[Part]


class Skeleton(NamedTuple):
    whole: list[Part]
    prompt: list[Part]
    sections: list[Section]  # of the completion; the last of them ends where the model stops, or was cut
    quoted: frozenset[int]  # holes that stand in double quotes: as JSON, perhaps
    blind: bool  # the template writes this whatever the texts say


class Builder:
    """Of one dialogue. Raises Rejected or Lost."""

    def __init__(self, dialogue: Dialogue, template: Template, control: Control, train_on: str):
        self.dialogue, self.template, self.control = dialogue, template, control
        # As they are rendered: a continued turn is one message, whose holes are both halves'.
        self.messages = dialogue.messages
        self.first = dialogue.split - dialogue.continued  # of the messages, the completion's first
        answers = [i for i in range(self.first, len(self.messages)) if self.messages[i]["role"] == "assistant"]
        self.turns = answers[-1:] if train_on == "last_turn" else answers
        self.all_trained = train_on == "completion"
        self.text = self._render(self.messages)
        self.places: dict[int, list[int]] = defaultdict(list)
        for found in SENTINEL.finditer(self.text):
            self.places[int(found[1])].append(found.start())

    def build(self) -> Skeleton:
        self._check_texts()
        self._check_tools()
        prompt, start = self._prompt()
        spans, end = self._spans(start)
        sections = [Section(trained, parts_of(self.text[a:b])) for trained, a, b in _runs(spans, start, end)]
        quoted = frozenset(
            hole
            for hole, places in self.places.items()
            for at in places
            if _QUOTED[0].search(self.text, 0, at) and _QUOTED[1].match(self.text, at + len(sentinel(hole)))
        )
        return Skeleton(parts_of(self.text), parts_of(prompt), sections, quoted, not quoted and self._blind())

    def _blind(self) -> bool:
        if self.dialogue.tools or any(message.keys() - {"role", *TEXTS} for message in self.messages):
            return False  # their texts are not all in the holes
        try:
            return self.template.may_be_blind and self._render(opaque(self.messages)) == self.text
        except Rejected:  # it looked at one
            return False

    def _render(self, messages: list[Message], prompted: bool = False) -> str:
        return self.template.render(messages, prompted, self.dialogue.tools, self.dialogue.kwargs)

    def _holes(self, i: int, whole: bool = True) -> list[int]:
        """Of message i as it is rendered: all holes, or those that context has to have."""
        blanks = [self.dialogue.blanks[i + (self.dialogue.continued and i > self.first)]]
        if self.dialogue.continued and i == self.first:
            blanks = self.dialogue.blanks[i : i + 2]
        return [hole for blank in blanks for hole in (blank.whole if whole else blank.needed)]

    def _check_texts(self) -> None:
        for i, message in enumerate(self.messages):
            trained = i in self.turns or (self.all_trained and i >= self.first)
            needed = self._holes(i, whole=trained or message["role"] != "assistant")
            for hole in self._holes(i):
                times = len(self.places[hole])
                if times == 0 and hole in needed:
                    said = "continue the prompt with" if i >= self.first else "write"
                    raise Lost("lost_content", hole, f"does not {said} all of message {i} ({message['role']}): lost is")
                if times > 1:
                    raise Lost("doubled_content", hole, f"writes {times} times what message {i} says once,")
            if i in self.turns and (holes := self._holes(i)):
                self._check_tags(i, holes)

    def _check_tags(self, i: int, holes: list[int]) -> None:
        """<think> stands as often as the row says; where it says nothing, a template may add one."""
        before = [at for j in range(i) for hole in self._holes(j) for at in self.places[hole]]
        written = self.text[max(before, default=0) : max(at for hole in holes for at in self.places[hole])]
        if written.count("<think>") > max(1, self.messages[i]["content"].count("<think>")):
            raise Lost("doubled_content", holes[0], "writes <think> once more than the row does, before")

    def _check_tools(self) -> None:
        """A template that ignores tools or calls writes the same without them."""
        if self.dialogue.tools and self._without(tools=None) == self.text:
            raise Rejected("lost_content", "the chat template does not write the tools (the same text without them)")
        for i, message in enumerate(self.messages):
            if not message.get("tool_calls"):
                continue
            bare = {key: value for key, value in message.items() if key != "tool_calls"}
            names = [name for call in message["tool_calls"] if (name := function_of(call).get("name"))]
            if self._without(i, bare) == self.text or not all(str(name) in self.text for name in names):
                raise Rejected("lost_content", f"the chat template does not write the tool calls of message {i}")
            emptied = message | {"tool_calls": [with_arguments(call, emptied_of) for call in message["tool_calls"]]}
            if emptied != message and self._without(i, emptied) == self.text:
                raise Rejected("lost_content", f"the chat template does not write the arguments of message {i}'s calls")

    def _without(self, i: int | None = None, message: Message | None = None, **changed: None) -> str:
        messages = [message if j == i and message is not None else each for j, each in enumerate(self.messages)]
        try:
            tools = changed.get("tools", self.dialogue.tools)
            return self.template.render(messages, False, tools, self.dialogue.kwargs)
        except Rejected:
            return ""  # it needs them

    def _prompt(self) -> tuple[str, int]:
        """The prompt, and where in the text the completion begins."""
        if self.dialogue.continued:
            return self._begun()
        prompt = self._render(self.messages[: self.first], self.dialogue.prompted)
        if self.text.startswith(prompt):
            return prompt, len(prompt)
        shared = len(os.path.commonprefix([prompt, self.text]))  # noqa: RUF071 - of text, on purpose
        rest = self.text[shared:]
        # The generation prompt opens "<think>\n", and the row goes on after "<think>" with other white space.
        if not prompt[shared:].strip() and (prompt[:shared].endswith("<think>") or rest[:1].isspace()):
            return prompt, shared + len(rest) - len(rest.lstrip())
        raise Rejected(
            "template",
            "the chat template does not write the completion as a continuation of the prompt, which ends with "
            f"{_shown(prompt[max(0, shared - 20) :])}, where the dialogue has "
            f"{_shown(self.text[max(0, shared - 20) : shared + 40])}",
        )

    def _begun(self) -> tuple[str, int]:
        """The prompt ends inside the assistant's turn, after what it says of it."""
        mine, rest = (self.dialogue.blanks[i] for i in (self.first, self.first + 1))
        content = str(mine.message["content"])
        last = mine.needed[-1:] or mine.whole[-1:]
        if last and (found := self.places[last[0]]):
            end = self._after(found[0], last[0], content)
            return self.text[:end], end
        place = self.text.find(content + str(rest.message["content"])[:1])  # nothing but tags
        if not content or place < 0:
            raise Rejected("template", "the chat template does not write the assistant's turn that the prompt begins")
        return self.text[: place + len(content)], place + len(content)

    def _spans(self, start: int) -> tuple[list[tuple[int, int]], int]:
        """What is trained of the text, and where the completion ends."""
        last = len(self.messages) - 1
        end = self._cut() if self.dialogue.cut else self._end(last, start if last == self.first else 0)
        if self.all_trained:
            return [(start, end)], end
        spans = []
        for i in self.turns:
            opened = (
                start if i == self.first and (self.dialogue.prompted or self.dialogue.continued) else self._start(i)
            )
            spans.append((max(opened, start), end if i == last else self._end(i, opened)))
        return spans, end

    def _start(self, i: int) -> int:
        """Where the turn of message i begins, after its header."""
        prompt = self._part(i, prompted=True)
        if prompt is not None:
            return len(prompt)
        # The template writes earlier turns otherwise when later ones follow: look for the header before its text.
        holes = [at for hole in self._holes(i) for at in self.places[hole]]
        before = [at for j in range(i) for hole in self._holes(j) for at in self.places[hole]]
        if holes and self.template.header:
            for header in (self.template.header, _OPENED.sub("", self.template.header)):
                if (at := self.text.rfind(header, max(before, default=0), min(holes))) >= 0:
                    return at + len(header)
        raise Rejected(
            "template", f"where the turn of message {i} begins cannot be told in what the chat template writes"
        )

    def _end(self, i: int, start: int) -> int:
        """Where the turn of message i ends: where a model stops, or before the white space at its end."""
        part = self.text if i == len(self.messages) - 1 else self._part(i + 1)
        holes = [at + len(sentinel(hole)) for hole in self._holes(i) for at in self.places[hole]]
        start = max([start, *holes])
        if part is None:  # earlier turns are written otherwise when later ones follow
            later = [at for j in range(i + 1, len(self.messages)) for h in self._holes(j) for at in self.places[h]]
            return start + self.control.first_end(self.text[start : min(later, default=len(self.text))])
        end = self.control.end(part[start:])
        return start + (len(part[start:].rstrip()) if end is None else end)

    def _cut(self) -> int:
        """Where the text of the last message ends, before what the template closes it with."""
        blank = self.dialogue.blanks[-1]
        if blank.message.get("tool_calls") or not blank.whole:  # calls could be read: so they are whole
            return len(self.control.without_end(self.text).rstrip())
        at, last = max((at, hole) for hole in blank.whole for at in self.places[hole])
        said = next(each for each in blank.message.values() if isinstance(each, str) and sentinel(last) in each)
        return self._after(at, last, said)

    def _after(self, at: int, hole: int, said: str) -> int:
        """Where `said`, of which `hole` stands at `at`, ends in the text, as far as it stands there."""
        end, rest = at + len(sentinel(hole)), said.rpartition(sentinel(hole))[2]
        return end + len(os.path.commonprefix([rest, self.text[end:]]))  # noqa: RUF071 - of text, on purpose

    def _part(self, i: int, prompted: bool = False) -> str | None:
        """The rendering of the first i messages, if the whole begins with it."""
        try:
            text = self._render(self.messages[:i], prompted)
        except Rejected:
            return None
        return text if self.text.startswith(text) else None


def _runs(spans: list[tuple[int, int]], start: int, end: int) -> Iterator[tuple[bool, int, int]]:
    at = start
    for opened, closed in spans:
        if at < opened:
            yield False, at, opened
        if opened < closed:
            yield True, opened, closed
        at = max(at, closed)
    if at < end:
        yield False, at, end


def _shown(text: str) -> str:
    return repr(SENTINEL.sub("..", text))
