"""One row -> its prompt and completions in pieces. Raises Rejected for a row that a template does not write in full."""

import json
from collections.abc import Sequence
from typing import Any

from stages.shard.config import ShardConfig
from stages.shard.rendering import messages as of
from stages.shard.rendering.control import Control, stops_of
from stages.shard.rendering.dialogue import Dialogue, joined
from stages.shard.rendering.messages import Message, Part
from stages.shard.rendering.piece import Piece, Rendered
from stages.shard.rendering.skeleton import Builder, Lost, Skeleton
from stages.shard.rendering.template import Template
from stages.shard.triple import Labelled, Rejected, Triple

_MAX_OUTLINES = 1024  # remembered; most sets have a few dozen
_OPENS = "<think>"
_REPEATED = 16  # characters: a completion may begin with the words of a short prompt by chance


class Renderer:
    """Raises RecipeError, at the first row of messages, where no template can write it."""

    def __init__(self, tokenizer: Any, config: ShardConfig):
        self._tokenizer, self._config = tokenizer, config
        self._template: Template | None = None
        self._known: dict[Any, Skeleton | Lost | Rejected] = {}
        self._end = tokenizer.eos_token
        self.notices: list[str] = []
        self._of_template: list[str] = []  # to be said once it writes something
        if tokenizer.chat_template is not None or config.chat.template is not None:
            self._template = Template(tokenizer, config.chat, config.tokenizer)
        self.control = Control(tokenizer, self._stops())

    def render(self, row: Triple | Labelled) -> Rendered:
        sides = (
            {"chosen": row.chosen, "rejected": row.rejected}
            if isinstance(row, Triple)
            else {"completion": row.completion}
        )
        were_cut = (row.chosen_cut, row.rejected_cut) if isinstance(row, Triple) else (row.cut,)
        cut = {name for (name, side), each in zip(sides.items(), were_cut, strict=True) if each and self._no_end(side)}
        if isinstance(row.prompt, str) and all(isinstance(side, str) for side in sides.values()):
            return self._plain(row.prompt, sides, cut)
        return self._written(row, sides, cut)

    def _no_end(self, side: Any) -> bool:
        """Whether a completion that was cut stands as it was cut: it may have an end token yet, or another's turn."""
        if isinstance(side, list) and side and isinstance(side[-1], dict) and side[-1].get("role") == "assistant":
            side = side[-1].get("content")
        return side is None or (isinstance(side, str) and self.control.end(side) is None)

    def check_messages(self) -> Template:
        """Raises RecipeError where no template can write lists of messages."""
        template = self._template or Template(self._tokenizer, self._config.chat, self._config.tokenizer)
        template.check_clock()
        self.notices += [said for said in self._of_template if said not in self.notices]
        return template

    def _stops(self) -> list[str]:
        added = {token.content for token in self._tokenizer.added_tokens_decoder.values()}
        written = self._template.closings if self._template is not None else []
        closings = [max(found, key=len) for text in written if (found := _tokens_in(text, added))]
        if written and not closings:
            self._note(f"the chat template closes a turn with {written[0]!r}, which is no token of its own")
        said = stops_of(self._tokenizer, self._config.tokenizer, closings)
        for closing in dict.fromkeys(closings):
            if closing == self._end:
                continue
            known = said[closing] == "generation_config.json"
            self._note(
                f"the chat template closes a turn with {closing}, and the end token of the tokenizer is {self._end}: "
                f"completions of messages end with {closing}"
                + (", at which generation_config.json stops" if known else ". See that generation stops there")
            )
        return list(said)

    def _say_spelled(self, said: str) -> None:
        said = f"{said} (shard.control_tokens: {self._config.control_tokens}); how many rows do, the facts say"
        if said not in self.notices:
            self.notices.append(said)

    def _note(self, said: str) -> None:
        self._of_template.append(f"{self._config.tokenizer}: {said}")

    # Plain text

    def _plain(self, prompt: str, sides: dict[str, Any], cut: set[str]) -> Rendered:
        """Text is joined as it stands, and what it spells is what it means: people write their own templates in it."""
        control = self.control
        texts = {name: control.without_end(text) for name, text in sides.items()}
        for name, text in ({"prompt": prompt} | texts).items():
            if not text.strip():
                raise Rejected("empty", f"{name} is empty")
        if len(prompt.strip()) >= _REPEATED and all(text.strip().startswith(prompt.strip()) for text in texts.values()):
            raise Rejected("doubled_content", "the completions repeat the prompt, which would be trained on")
        begun = prompt.removeprefix(control.start) if control.start else prompt
        spelled = [(name, text) for name, text in [("prompt", begun), *texts.items()] if control.spelled(text)]
        self._refuse(spelled)
        if prompt.rstrip().endswith(_OPENS) and all(text.lstrip().startswith(_OPENS) for text in texts.values()):
            raise Rejected("doubled_content", f"the prompt ends with {_OPENS}, and the completions begin with it again")
        if spelled:
            self._say_spelled("plain text spells control tokens, and they are such there")
        completions = []
        for name, text in sides.items():
            end = "" if name in cut else self._end
            closed = text[: control.end(text)] if texts[name] != text else text + end
            completions.append([Piece(closed, trained=True)])
        return Rendered([Piece(prompt, opens=True)], completions, bool(spelled), len(cut))

    def _refuse(self, spelled: Sequence[tuple[str, str]]) -> None:
        if spelled and self._config.control_tokens == "reject":
            name, text = spelled[0]
            raise Rejected("control_token", f"{name} spells the control token {self.control.first(text)}")

    # Messages

    def _written(self, row: Triple | Labelled, sides: dict[str, Any], cut: set[str]) -> Rendered:
        template = self.check_messages()
        prompt = self._prompt(row.prompt, template)
        completions = {name: self._completion(side, name, template) for name, side in sides.items()}
        if all(_begins_with(side, prompt) for side in completions.values()):
            raise Rejected("doubled_content", "the completions repeat the messages of the prompt")
        prompted = all(side[0]["role"] == "assistant" for side in completions.values())
        continued = prompted and prompt[-1]["role"] == "assistant" and not prompt[-1].get("tool_calls")
        kwargs = template.checked(row.chat_kwargs)
        before = of.outline(prompt, 0, self.control)
        tools, spelled = of.masked(row.tools, len(before.texts), self.control) if row.tools else ("", [])
        base = len(before.texts) + len(spelled)
        shared = (before.key, tools, json.dumps(kwargs, sort_keys=True, default=str), base, prompted, continued)
        written: list[tuple[list[Piece], list[Piece]]] = []
        counted = bool(spelled)
        for name, side in completions.items():
            after = of.outline(side, base, self.control)
            texts = [*before.texts, *spelled, *after.texts]
            literal = [*before.literal, *([True] * len(spelled)), *after.literal]
            self._refuse([(name, text) for text, is_spelled in zip(texts, literal, strict=True) if is_spelled])
            skeleton = self._skeleton((*shared, name in cut), after.key, kwargs, template, name, texts)
            if not skeleton.blind:
                whole = template.render(joined([*prompt, *side], len(prompt), continued), False, row.tools, kwargs)
                texts = _fitting(skeleton, texts, whole, name)
            counted = counted or any(literal)
            keep = self._config.control_tokens == "keep"
            kept = set() if keep else {i for i, is_spelled in enumerate(literal) if is_spelled}
            completion = [p for s in skeleton.sections for p in _pieces(s.parts, texts, kept, s.trained)]
            if not any(piece.trained for piece in completion):
                raise Rejected("nothing_trained", f"{name} has nothing of shard.train_on: {self._config.train_on}")
            ended = self.control.end(completion[-1].text) == len(completion[-1].text) and not completion[-1].literal
            if not ended and name not in cut:
                completion.append(Piece(self._end, trained=completion[-1].trained))
            written.append((_pieces(skeleton.prompt, texts, kept, False), completion))
        if any(piece != written[0][0] for piece, _ in written):
            raise Rejected("template", "the chat template writes the prompt otherwise before the other completion")
        if counted:
            become = "they become such" if self._config.control_tokens == "keep" else "they stay text"
            self._say_spelled(f"texts of messages spell control tokens, and {become}")
        return Rendered(written[0][0], [completion for _, completion in written], counted, len(cut))

    def _prompt(self, given: Any, template: Template) -> list[Message]:
        prompt = [template.for_template(message) for message in of.normal(given, "the prompt", self.control)]
        while prompt and prompt[-1]["role"] == "assistant" and not of.says_something(prompt[-1]):
            prompt = prompt[:-1]  # the beginning of a turn that says nothing yet
        if not prompt:
            raise Rejected("empty", "no message comes before the completions")
        system = self._config.chat.system
        if system is not None and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": system}, *prompt]
        return prompt

    def _completion(self, given: Any, name: str, template: Template) -> list[Message]:
        side = [template.for_template(message) for message in of.normal(given, name, self.control)]
        if not any(of.says_something(message) for message in side):
            raise Rejected("empty", f"{name} is empty")
        if self._config.train_on == "completion":
            return side
        while side and side[-1]["role"] != "assistant":
            side = side[:-1]  # nobody answers these any more
        if not side:
            raise Rejected("nothing_trained", f"{name} has no turn of the assistant")
        if not of.says_something(side[-1]):
            raise Rejected("empty", f"the last turn of {name} is empty")
        return side

    def _skeleton(
        self, shared: Any, key: Any, kwargs: dict[str, Any], template: Template, name: str, texts: list[str]
    ) -> Skeleton:
        found = self._known.get((shared, key))
        if found is None:
            before, tools, _, base, prompted, continued, cut = shared
            blanks, _ = of.blanks(before, 0)
            after, _ = of.blanks(key, base)
            schemas = json.loads(tools) if tools else None
            dialogue = Dialogue([*blanks, *after], len(blanks), continued, prompted, schemas, kwargs, cut)
            try:
                found = Builder(dialogue, template, self.control, self._config.train_on).build()
            except (Lost, Rejected) as error:
                found = error.with_traceback(None)
            if len(self._known) >= _MAX_OUTLINES:
                self._known.clear()
            self._known[shared, key] = found
        if isinstance(found, Lost):
            text = texts[found.hole]
            shown = text if len(text) < 80 else f"{text[:76]} ..."
            raise Rejected(found.reason, f"{name}: the chat template {found.said} {shown!r}")
        if isinstance(found, Rejected):
            raise Rejected(found.reason, f"{name}: {found.detail}")
        return found


def _tokens_in(text: str, added: set[str]) -> list[str]:
    """Those with which it begins, else those with which it ends."""
    return [t for t in added if text.startswith(t)] or [t for t in added if text.endswith(t)]


def _fitting(skeleton: Skeleton, texts: list[str], whole: str, name: str) -> list[str]:
    """The texts as the template wrote them: as they stand, or in JSON. Raises Rejected where it is neither."""
    if _filled(skeleton.whole, texts) == whole:
        return texts
    escaped = [json.dumps(t, ensure_ascii=False)[1:-1] if i in skeleton.quoted else t for i, t in enumerate(texts)]
    if _filled(skeleton.whole, escaped) == whole:
        return escaped
    raise Rejected("template", f"{name}: the chat template changes a text, or writes another dialogue for what it says")


def _filled(parts: list[Part], texts: list[str]) -> str:
    return "".join([texts[part] if isinstance(part, int) else part for part in parts])


def _pieces(parts: list[Part], texts: list[str], literal: set[int], trained: bool) -> list[Piece]:
    """Literal texts are pieces of their own."""
    if not literal:
        return [Piece(_filled(parts, texts), trained)]
    pieces: list[Piece] = []
    run: list[Part] = []
    for part in parts:
        if part in literal:
            pieces += [Piece(_filled(run, texts), trained)] if run else []
            pieces.append(Piece(texts[int(part)], trained, literal=True))
            run = []
        else:
            run.append(part)
    return pieces + ([Piece(_filled(run, texts), trained)] if run else [])


def _begins_with(side: list[Message], prompt: list[Message]) -> bool:
    return len(side) > len(prompt) and all(
        mine["role"] == theirs["role"] and mine["content"].strip() == theirs["content"].strip()
        for mine, theirs in zip(side, prompt, strict=False)
    )
