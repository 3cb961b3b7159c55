"""Another prompt's completion for each labelled one: what KTO estimates the KL divergence from the reference with."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from stages.errors import ContractError
from stages.shard.tokenization import hash_of
from stages.spans import cut, told


def with_mismatched(rows: pa.Table, max_length: int) -> tuple[pa.Table, pa.Table]:
    """Fill `mismatched_ids` and `mismatched_trained` of a part, and make its `pair_id`s whole with them.

    Completions move on by one row, as in TRL, so that a part's mismatched completions are about those of its rows; by
    more where nothing trained would be left of one that is cut at `max_length`. Returns also the rows, as they were,
    for which none is left. Raises ContractError where all rows of the part have one prompt.
    """
    if not len(rows):
        return rows, rows
    prompts, completions, trained = (
        rows[name].to_pylist() for name in ("prompt_ids", "completion_ids", "completion_trained")
    )
    starts = [spans[0] for spans in trained]
    rooms = [max_length - len(prompt) for prompt in prompts]
    others = next_other(prompts, starts, rooms)
    fits = pa.array([other is not None for other in others])
    lone, rows = rows.filter(pc.invert(fits)), rows.filter(fits)
    row_ids, ids, taken, spans = iter(rows["pair_id"].to_pylist()), [], [], []
    for prompt, room, other in zip(prompts, rooms, others, strict=True):
        if other is not None:
            taken.append(completions[other][:room])
            spans.append(cut(trained[other], room))
            ids.append(next(row_ids) + hash_of(prompt, taken[-1], *told(taken[-1:], spans[-1:]))[:16])
    for name, values in (
        ("pair_id", pa.array(ids, pa.string())),
        ("mismatched_ids", pa.array(taken, pa.list_(pa.int32()))),
        ("mismatched_trained", pa.array(spans, pa.list_(pa.int32()))),
    ):
        rows = rows.set_column(rows.column_names.index(name), name, values)
    return rows, lone


def next_other(prompts: Sequence[list[int]], starts: Sequence[int], rooms: Sequence[int]) -> list[int | None]:
    """For each row the next one, in a circle, that has another prompt and a completion that fits; None without such.

    A completion fits if its first trained token, at `starts`, comes within the `rooms` tokens that a row has.
    """
    if all(prompt == prompts[0] for prompt in prompts):
        raise ContractError(
            f"a part has {len(prompts)} labelled completions of one prompt, so none of another prompt to estimate the "
            "KL divergence with. Lower shard.num_parts, or give more prompts"
        )
    following, count = [0] * len(prompts), len(prompts)
    for i in reversed(range(2 * count)):
        row, after = i % count, (i + 1) % count
        following[row] = after if prompts[after] != prompts[row] else following[after]
    found: list[int | None] = []
    for row, (prompt, room) in enumerate(zip(prompts, rooms, strict=True)):
        circle = ((following[row] + step) % count for step in range(count))
        found.append(next((i for i in circle if prompts[i] != prompt and starts[i] < room), None))
    return found
