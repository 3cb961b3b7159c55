"""Another prompt's completion for each labelled one: what KTO estimates the KL divergence from the reference with."""

from collections.abc import Sequence

import pyarrow as pa

from stages.errors import ContractError
from stages.shard.tokenization import hash_of


def with_mismatched(rows: pa.Table, max_length: int) -> pa.Table:
    """Fill `mismatched_ids` of a part, and make its `pair_id`s whole with them.

    Completions move on by one row, as in TRL, so that a part's mismatched completions are about those of its rows.
    Raises ContractError where all rows of the part have one prompt.
    """
    if not len(rows):
        return rows
    prompts, completions = rows["prompt_ids"].to_pylist(), rows["completion_ids"].to_pylist()
    taken = [completions[row][: max_length - len(prompts[i])] for i, row in enumerate(next_other(prompts))]
    ids = [
        row_id + hash_of(*both)[:16] for row_id, *both in zip(rows["pair_id"].to_pylist(), prompts, taken, strict=True)
    ]
    for name, values in (("pair_id", pa.array(ids)), ("mismatched_ids", pa.array(taken, pa.list_(pa.int32())))):
        rows = rows.set_column(rows.column_names.index(name), name, values)
    return rows


def next_other(prompts: Sequence[list[int]]) -> list[int]:
    """For each row the next one, in a circle, that has another prompt."""
    if all(prompt == prompts[0] for prompt in prompts):
        raise ContractError(
            f"a part has {len(prompts)} labelled completions of one prompt, so none of another prompt to estimate the "
            "KL divergence with. Lower shard.num_parts, or give more prompts"
        )
    found, count = [0] * len(prompts), len(prompts)
    for i in reversed(range(2 * count)):
        row, following = i % count, (i + 1) % count
        found[row] = following if prompts[following] != prompts[row] else found[following]
    return found
