"""Rows -> pairs of token ids: render, tokenize, cut. The only place where text becomes tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages import spans
from stages.errors import RecipeError
from stages.model_files import tokenizer_at, vocabulary
from stages.shard.config import ShardConfig
from stages.shard.rendering.encoding import Encoder, Run
from stages.shard.rendering.piece import Piece, Rendered, check
from stages.shard.rendering.renderer import Renderer
from stages.shard.triple import Labelled, Rejected, Triple

_CHARACTERS = 4_000_000  # of one text; a tokenizer takes up to 300 bytes of memory for each


@dataclass(frozen=True)
class Pair:
    """Token ids of one triple. Completions end where the model stops, but those in `cut_completions` and `unended`.

    What is trained of a completion's ids are flat spans (stages/spans.py), not empty.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_trained: list[int]
    rejected_trained: list[int]
    cut_prompt: bool
    cut_completions: int  # 0, 1 or 2 of them were cut at max_length
    control_tokens: bool = False  # whether text of the row spells one
    unended: int = 0  # of them were cut when they were sampled

    @property
    def pair_id(self) -> str:
        """32 hex digits of the three id lists, and of the spans where they are not all of both sides."""
        ids, trained = (self.chosen_ids, self.rejected_ids), (self.chosen_trained, self.rejected_trained)
        return hash_of(self.prompt_ids, *ids, *spans.told(ids, trained))


@dataclass(frozen=True)
class Completion:
    """Token ids of a labelled completion, which ends where the model stops, unless it was cut."""

    prompt_ids: list[int]
    completion_ids: list[int]
    completion_trained: list[int]
    label: bool
    cut_prompt: bool
    cut_completions: int  # 0 or 1
    control_tokens: bool = False
    unended: int = 0  # 0 or 1

    @property
    def row_id(self) -> str:
        """16 hex digits of the ids and the label, and of the spans where they are not all."""
        told = spans.told((self.completion_ids,), (self.completion_trained,))
        return hash_of(self.prompt_ids, self.completion_ids, [int(self.label)], *told)[:16]


def hash_of(*lists: Sequence[int]) -> str:
    """32 hex digits."""
    digest = hashlib.sha256()
    for ids in lists:
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(np.asarray(ids, "<i4").tobytes())
    return digest.hexdigest()[:32]


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model folder or hub name. Raises RecipeError where there is none, or it names no end token."""
    from transformers import AutoTokenizer

    folder, revision = tokenizer_at(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
    except Exception as error:  # of transformers, tokenizers, json, a hub: there are many ways to be damaged
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
        raise RecipeError(
            f"the tokenizer of {name} cannot be loaded: {said}. Mend it, or name another one: shard.tokenizer"
        ) from error
    if tokenizer.eos_token_id is None:
        raise RecipeError(f"the tokenizer of {name} names no end token (eos_token), and completions must end with one")
    return tokenizer


class Tokenizer:
    """What makes pairs of rows; one a worker process. Raises RecipeError where it cannot serve the recipe."""

    def __init__(self, config: ShardConfig, tokenizer: Any = None):
        self._config = config
        self._tokenizer = load_tokenizer(config.tokenizer) if tokenizer is None else tokenizer
        self._renderer = Renderer(self._tokenizer, config)
        self._encoder = Encoder(self._tokenizer, self._renderer.control)
        self._vocabulary = _vocabulary(config.tokenizer)
        self._checked = False

    @property
    def notices(self) -> list[str]:
        """What a person should know of tokenizer and template."""
        return self._renderer.notices

    def check_messages(self) -> None:
        """Raises RecipeError where no template can write lists of messages, or it writes what the model cannot read."""
        self._check_ids(self._encoder.ids([Run(self._renderer.check_messages().sample)]))

    def one(self, row: Triple | Labelled) -> Pair | Completion:
        """Raises Rejected."""
        (made,) = self.tokenize([row])
        if isinstance(made, Rejected):
            raise made
        return made

    def tokenize(self, rows: Sequence[Triple | Labelled]) -> list[Pair | Completion | Rejected]:
        """One a row, in order. No row ends it; an id that the model has no embedding for does: RecipeError."""
        if not self._checked and any(not isinstance(row.prompt, str) for row in rows):
            self.check_messages()
            self._checked = True
        rendered = [self._rendered(row) for row in rows]
        good = [each for each in rendered if isinstance(each, Rendered)]
        runs, sizes = [], []
        for prompt, completions, *_ in good:
            for i, pieces in enumerate((prompt, *completions)):
                sizes.append(len(pieces))
                runs += [Run(p.text, p.literal, p.opens, i + j > 0) for j, p in enumerate(pieces)]
        try:
            ids = iter(self._encoder.ids(runs))
        except (UnicodeError, TypeError, ValueError) as error:  # of one text; which one, each row by itself tells
            if len(rows) > 1:
                return [made for row in rows for made in self.tokenize([row])]
            return [Rejected("malformed", f"the tokenizer cannot read a text of this row: {error}")]
        counts = iter(sizes)
        made: list[Pair | Completion | Rejected] = []
        for row, each in zip(rows, rendered, strict=True):
            if isinstance(each, Rejected):
                made.append(each)
                continue
            lists = [[next(ids) for _ in range(next(counts))] for _ in range(1 + len(each.completions))]
            try:
                made.append(self._made(row, each, lists))
            except Rejected as error:
                made.append(error)
        return made

    def _rendered(self, row: Triple | Labelled) -> Rendered | Rejected:
        try:
            if isinstance(row, Triple) and row.chosen == row.rejected:
                raise Rejected("equal", "chosen and rejected are the same text")
            rendered = self._renderer.render(row)
            for pieces in (rendered.prompt, *rendered.completions):
                check(pieces)
                self._check_size(pieces)
        except Rejected as error:
            return error.with_traceback(None)  # which would keep the row
        except RecursionError:
            return Rejected("malformed", "a message is nested too deeply")
        return rendered

    def _check_size(self, pieces: Sequence[Piece]) -> None:
        """Of text that is tokenized as a whole, however little of it is kept."""
        size, most = sum(len(piece.text) for piece in pieces), max(_CHARACTERS, 64 * self._config.max_length)
        if size > most:
            raise Rejected("too_long", f"it has a text of {size} characters, and of {most} at most tokens are made")

    def _made(self, row: Triple | Labelled, rendered: Rendered, lists: list[list[list[int]]]) -> Pair | Completion:
        ids = [[token for piece in pieces for token in piece] for pieces in lists]
        self._check_ids(ids)
        prompt = self._begun(ids[0]) if rendered.prompt[0].opens else ids[0]
        whole = [
            spans.of([p.trained for p in pieces], [len(i) for i in each])
            for pieces, each in zip(rendered.completions, lists[1:], strict=True)
        ]
        prompt, sides, cut_prompt, cut = _truncate(prompt, ids[1:], self._config)
        trained = [spans.cut(each, len(side)) for each, side in zip(whole, sides, strict=True)]
        if not all(trained):
            raise Rejected("nothing_trained", f"no trained token is left in {self._config.max_length} tokens")
        facts = cut_prompt, cut, rendered.spells_control, rendered.unended
        if isinstance(row, Labelled):
            return Completion(prompt, sides[0], trained[0], row.label, *facts)
        chosen, rejected = sides
        last = trained[0][-1]  # what comes after it is read by nothing
        if chosen == rejected or (trained[0] == trained[1] and chosen[:last] == rejected[:last]):
            if cut:
                said = (
                    f"both completions are alike in the {last} tokens that are left of them up to the last trained one"
                )
                raise Rejected("too_long", said)
            raise Rejected("equal", "chosen and rejected are the same tokens")
        return Pair(prompt, chosen, rejected, trained[0], trained[1], *facts)

    def _begun(self, prompt: list[int]) -> list[int]:
        """A plain prompt, with one start token where the text has one and the tokenizer adds one, and no end token."""
        start, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        prompt = prompt[:-1] if len(prompt) > 1 and prompt[-1] == end else prompt
        return prompt[1:] if start is not None and prompt[:2] == [start, start] else prompt

    def _check_ids(self, lists: list[list[int]]) -> None:
        largest = max((max(ids) for ids in lists if ids), default=0)
        if self._vocabulary is not None and largest >= self._vocabulary:
            token = self._tokenizer.convert_ids_to_tokens(largest)
            raise RecipeError(
                f"the tokenizer of {self._config.tokenizer} makes the id {largest} ({token!r}), and the model beside "
                f"it has {self._vocabulary} tokens (vocab_size in config.json). Tokens were added to the tokenizer and "
                f"not to the model: model.resize_token_embeddings({len(self._tokenizer)}) adds them, or use the "
                "tokenizer without them"
            )


def _vocabulary(name: str) -> int | None:
    """Of the model beside the tokenizer; None where there is no model, or it does not say."""
    try:
        return vocabulary(name)
    except (OSError, ValueError):  # a tokenizer by itself
        return None


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
