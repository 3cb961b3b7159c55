"""Pairs -> the tensors of one forward pass, in which what both sequences of a pair start with stands once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, takewhile
from typing import Any

import torch

Ids = Sequence[int]
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


@dataclass(frozen=True)
class Layout:
    """B pairs as model inputs, and where the N tokens of their 2B completions are predicted.

    Targets stand in the order chosen, rejected of the first pair, then of the second, and so on. `pack` makes one row
    (R = 1) of T tokens, with `stretches`; `pad` makes R = 2B rows, with an attention mask.
    """

    input_ids: torch.Tensor  # [R, T] int64
    sources: torch.Tensor  # [N] int64, flat position of the token that predicts target n; -1 where there is none
    targets: torch.Tensor  # [N] int64, ids of the completion tokens
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
        """Tokens of (chosen [B], rejected [B]), float32."""
        return self.sums(torch.ones(len(self.owners), device=self.owners.device))

    def in_tail(self) -> torch.Tensor:
        """[N] float32: 1 where a token stands past the length of its pair's other completion, else 0."""
        counts = torch.bincount(self.owners, minlength=2 * self.num_pairs)
        starts = counts.cumsum(0) - counts
        positions = torch.arange(len(self.owners), device=self.owners.device) - starts[self.owners]
        shorter = counts.view(-1, 2).amin(1)
        return (positions >= shorter[self.owners // 2]).float()

    def split(self, token_logps: torch.Tensor) -> list[torch.Tensor]:
        """Per-token values [N] -> 2B tensors, one a completion: chosen, rejected, chosen, ..."""
        return list(token_logps.split(torch.bincount(self.owners, minlength=2 * self.num_pairs).tolist()))


def pack(pairs: Sequence[tuple[Ids, Ids, Ids]], multiple: int = 1) -> Layout:
    """Lay out pairs, given as (prompt_ids, chosen_ids, rejected_ids), one after another in one row without padding.

    But for a last stretch that makes the row's length a `multiple`, and attends to itself alone.

    Completions have at least one token; a prompt may be empty. The last token of a completion is predicted but predicts
    nothing, so it is no input. Positions of both completions go on from the trunk's.
    """
    ids: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    shared: list[int] = []
    places: list[Sequence[int]] = []  # of each of the 2B input sequences, where its tokens stand in the row
    for prompt, chosen, rejected in pairs:
        first, second = ([*prompt, *side[:-1]] for side in (chosen, rejected))
        trunk = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False)))
        start, middle, end = len(ids), len(ids) + len(first), len(ids) + len(first) + len(second) - trunk
        ids += first + second[trunk:]
        positions += [*range(len(first)), *range(trunk, len(second))]
        places += [range(start, middle), [*range(start, start + trunk), *range(middle, end)]]
        for length, count in ((len(first), 0), (end - middle, trunk)):
            if length:
                lengths.append(length)
                shared.append(count)
    targets, num_tokens = _targets(pairs, places), len(ids)
    # Where there are only empty prompts and completions of one token, a model wants a token all the same.
    if spare := -len(ids) % multiple or int(not ids):
        ids += [0] * spare
        positions += [0] * spare
        lengths.append(spare)
        shared.append(0)
    row, stretches = torch.tensor([positions]), Stretches.of(lengths, shared)
    return Layout(torch.tensor([ids]), *targets, len(pairs), num_tokens, position_ids=row, stretches=stretches)


def pad(pairs: Sequence[tuple[Ids, Ids, Ids]]) -> Layout:
    """Lay out pairs as two rows each, padded on the right: for models whose attention cannot take `pack`'s."""
    inputs = [[*prompt, *side[:-1]] or [0] for prompt, *sides in pairs for side in sides]
    width = max(map(len, inputs))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in inputs])
    filled = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in inputs])
    places = [range(start * width, start * width + len(row)) for start, row in enumerate(inputs)]
    targets = _targets(pairs, places)
    return Layout(ids, *targets, len(pairs), sum(map(len, inputs)), attention_mask=filled)


def _ends(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)


def _targets(
    pairs: Sequence[tuple[Ids, Ids, Ids]], places: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sources, targets, owners): a token is predicted where the token before it stands."""
    sources: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    sides = ((len(prompt), side) for prompt, *sides in pairs for side in sides)
    for owner, ((start, side), place) in enumerate(zip(sides, places, strict=True)):
        before = [-1, *place]
        sources += before[start : start + len(side)]
        targets += side
        owners += [owner] * len(side)
    return torch.tensor(sources), torch.tensor(targets), torch.tensor(owners)


def _moved(value: Any, device: torch.device) -> Any:
    """The same with its tensors on `device`."""
    changes: dict[str, Any] = {}
    for each in fields(value):
        content = getattr(value, each.name)
        if isinstance(content, torch.Tensor):
            changes[each.name] = content.to(device, non_blocking=True)
        elif isinstance(content, Stretches):
            changes[each.name] = _moved(content, device)
    return replace(value, **changes)
