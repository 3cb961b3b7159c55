"""Pairs -> the tensors of one forward pass, in which what both sequences of a pair start with stands once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, takewhile
from typing import Any, NamedTuple

import torch

from stages.spans import Spans, pieces, whole

Ids = Sequence[int]
Both = tuple[Spans | None, Spans | None]  # of chosen and rejected: None where the whole completion is trained
ROUND = 64  # oneDNN keeps up to a megabyte for each number of rows that it has ever multiplied


@dataclass(frozen=True)
class Stretches:
    """A row of T tokens cut into stretches; one attends, causally, to its context: a start of the stretch before it,
    and itself.

    A pair has up to two: the sequence of chosen, which attends to itself alone, and the rest of rejected, whose context
    starts with the trunk (the prompt, and what the completions have in common at their start).
    """

    lengths: tuple[int, ...]  # of the stretches, in the order of the row
    shared: tuple[int, ...]  # tokens of the stretch before it that each one's context starts with
    contexts: tuple[int, ...]  # lengths of their contexts
    context: torch.Tensor  # [sum of contexts] int64, positions in the row, stretch after stretch
    length_ends: torch.Tensor  # [stretches + 1] int32, cumulative, from 0: what variable-length kernels want
    context_ends: torch.Tensor  # [stretches + 1] int32
    masks: dict[Any, torch.Tensor] = field(default_factory=dict)  # made by attention on first use, shared by all layers

    @classmethod
    def of(cls, lengths: Sequence[int], shared: Sequence[int]) -> "Stretches":
        own = torch.arange(sum(lengths)).split(list(lengths))
        contexts = [torch.cat([own[i - 1][:count], own[i]]) if count else own[i] for i, count in enumerate(shared)]
        sizes = [len(context) for context in contexts]
        return cls(tuple(lengths), tuple(shared), tuple(sizes), torch.cat(contexts), _ends(lengths), _ends(sizes))

    def to(self, device: torch.device) -> "Stretches":
        return self if self.context.device == device else _moved(self, device)


@dataclass(frozen=True)
class Layout:
    """B pairs as model inputs, and where the N trained tokens of their 2B completions are predicted.

    Tokens of a completion that are not trained are context: inputs, and no targets. All that is summed or counted here
    is over the trained ones.

    Targets stand in the order chosen, rejected of the first pair, then of the second, and so on. `pack` makes one row
    (R = 1) of T tokens, with `stretches`; `pad` makes R = 2B rows, with an attention mask.
    """

    input_ids: torch.Tensor  # [R, T] int64
    sources: torch.Tensor  # [N] int64, flat position of the token that predicts target n; -1 where there is none
    targets: torch.Tensor  # [N] int64, ids of the trained tokens
    owners: torch.Tensor  # [N] int64, 2i for chosen and 2i + 1 for rejected of pair i
    num_pairs: int
    num_tokens: int  # without padding
    position_ids: torch.Tensor | None = None  # [R, T] int64; with padding on the right, models count for themselves
    stretches: Stretches | None = None
    attention_mask: torch.Tensor | None = None  # [R, T] int64, 0 at padding

    def to(self, device: torch.device) -> "Layout":
        return _moved(self, device)

    def sums(self, token_logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-token values [N] -> (chosen [B], rejected [B]), summed over each completion."""
        both = token_logps.new_zeros(2 * self.num_pairs).index_add(0, self.owners, token_logps)
        return both[0::2], both[1::2]

    def lengths(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Trained tokens of (chosen [B], rejected [B]), float32."""
        return self.sums(torch.ones(len(self.owners), device=self.owners.device))

    def in_tail(self) -> torch.Tensor:
        """[N] float32: 1 where a completion has had as many trained tokens as its pair's other one has, else 0."""
        counts = torch.bincount(self.owners, minlength=2 * self.num_pairs)
        starts = counts.cumsum(0) - counts
        positions = torch.arange(len(self.owners), device=self.owners.device) - starts[self.owners]
        shorter = counts.view(-1, 2).amin(1)
        return (positions >= shorter[self.owners // 2]).float()

    def split(self, token_logps: torch.Tensor) -> list[torch.Tensor]:
        """Per-token values [N] -> 2B tensors, one a completion: chosen, rejected, chosen, ..."""
        return list(token_logps.split(torch.bincount(self.owners, minlength=2 * self.num_pairs).tolist()))


def pack(pairs: Sequence[tuple[Ids, Ids, Ids]], multiple: int = 1, trained: Sequence[Both] | None = None) -> Layout:
    """Lay out pairs, given as (prompt_ids, chosen_ids, rejected_ids), one after another in one row without padding.

    But for a last stretch that makes the row's length a `multiple`, and attends to itself alone.

    `trained`: of each pair the spans of both completions; left out, all tokens are trained. Each completion has at
    least one that is; a prompt may be empty. The last trained token of a completion predicts nothing that is asked for,
    so neither it nor what comes after it is an input. Positions of both completions go on from the trunk's.
    """
    ids: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    shared: list[int] = []
    places: list[Sequence[int]] = []  # of each of the 2B input sequences, where its tokens stand in the row
    sequences = _sequences(pairs, trained)
    for one, other in zip(sequences[::2], sequences[1::2], strict=True):
        first, second = one.inputs, other.inputs
        trunk = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False)))
        start, middle, end = len(ids), len(ids) + len(first), len(ids) + len(first) + len(second) - trunk
        ids += first + second[trunk:]
        positions += [*range(len(first)), *range(trunk, len(second))]
        places += [range(start, middle), [*range(start, start + trunk), *range(middle, end)]]
        for length, count in ((len(first), 0), (end - middle, trunk)):
            if length:
                lengths.append(length)
                shared.append(count)
    targets, num_tokens = _targets(sequences, places), len(ids)
    # Where there are only empty prompts and completions of one token, a model wants a token all the same.
    if spare := -len(ids) % multiple or int(not ids):
        ids += [0] * spare
        positions += [0] * spare
        lengths.append(spare)
        shared.append(0)
    row, stretches = torch.tensor([positions]), Stretches.of(lengths, shared)
    return Layout(torch.tensor([ids]), *targets, len(pairs), num_tokens, position_ids=row, stretches=stretches)


def pad(pairs: Sequence[tuple[Ids, Ids, Ids]], trained: Sequence[Both] | None = None) -> Layout:
    """Lay out pairs as two rows each, padded on the right: for models whose attention cannot take `pack`'s."""
    sequences = _sequences(pairs, trained)
    inputs = [sequence.inputs or [0] for sequence in sequences]
    width = max(map(len, inputs))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in inputs])
    filled = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in inputs])
    places = [range(start * width, start * width + len(row)) for start, row in enumerate(inputs)]
    targets = _targets(sequences, places)
    return Layout(ids, *targets, len(pairs), sum(map(len, inputs)), attention_mask=filled)


class _Sequence(NamedTuple):
    """A prompt with one completion."""

    inputs: list[int]
    prompt: int  # tokens of it
    completion: Ids
    trained: Spans


def _sequences(pairs: Sequence[tuple[Ids, Ids, Ids]], trained: Sequence[Both] | None) -> list[_Sequence]:
    """The 2B sequences of B pairs: chosen, rejected, chosen, ..."""
    found = []
    for (prompt, *sides), both in zip(pairs, trained or [(None, None)] * len(pairs), strict=True):
        for side, given in zip(sides, both, strict=True):
            spans = whole(len(side)) if given is None else given
            found.append(_Sequence([*prompt, *side[: spans[-1] - 1]], len(prompt), side, spans))
    return found


def _ends(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)


def _targets(
    sequences: Sequence[_Sequence], places: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sources, targets, owners): a token is predicted where the token before it stands."""
    sources: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for owner, (sequence, place) in enumerate(zip(sequences, places, strict=True)):
        before = [-1, *place]
        for start, stop in pieces(sequence.trained):
            sources += before[sequence.prompt + start : sequence.prompt + stop]
            targets += sequence.completion[start:stop]
            owners += [owner] * (stop - start)
    return torch.tensor(sources), torch.tensor(targets), torch.tensor(owners)


def _moved(value: Any, device: torch.device) -> Any:
    """The same with its tensors on `device`; masks are kept, as they are known by their devices."""
    changes: dict[str, Any] = {}
    for each in fields(value):
        content = getattr(value, each.name)
        if isinstance(content, torch.Tensor):
            changes[each.name] = content.to(device, non_blocking=True)
        elif isinstance(content, Stretches):
            changes[each.name] = content.to(device)
    return replace(value, **changes)
