"""What is told of the reference's own preferences, of hand-made log-probs."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages import schema
from stages.score.reference import merged, reference_of


def scored(rows: list[tuple[list[float], list[float]]]) -> tuple[pa.Table, pa.Table]:
    """Pairs, and their log-probs."""
    sides = schema.PAIR_SIDES
    ids = [dict(zip((f"{side}_ids" for side in sides), ([1] * len(v) for v in row), strict=True)) for row in rows]
    own: list[dict[str, Any]] = [
        {"pair_id": f"{i:032}", "source": "a.jsonl", "source_row": i, "prompt_ids": [1]}
        | each
        | {f"{side}_trained": [0, len(each[f"{side}_ids"])] for side in sides}
        for i, each in enumerate(ids)
    ]
    pairs = pa.Table.from_pylist(own)
    return pairs, schema.logprobs_table(pairs, [np.array(values) for row in rows for values in row])


def test_accuracy_margin_means_and_outliers_whatever_the_parts() -> None:
    rng = np.random.default_rng(0)
    rows = [tuple(-rng.random(1 + rng.integers(9)) for _ in range(2)) for _ in range(40)]
    rows[17] = (np.array([-1.0]), np.array([-30.0, -50.0]))
    pairs, logps = scored(rows)
    whole = merged([reference_of(pairs, logps)])
    parts = [reference_of(pairs.slice(i, 7), logps.slice(i, 7)) for i in range(0, 40, 7)]
    assert merged(parts) == whole
    sums = np.array([[each.sum() for each in row] for row in rows])
    assert whole["accuracy"] == round(float((sums[:, 0] > sums[:, 1]).mean()), 4)
    assert whole["margin"] == pytest.approx((sums[:, 0] - sums[:, 1]).mean(), abs=1e-3)
    for i, side in enumerate(schema.PAIR_SIDES):
        assert whole["per_token"][side] == pytest.approx(np.concatenate([row[i] for row in rows]).mean(), abs=1e-3)
    assert len(whole["outliers"]) == 10
    first = {"per_token": -40.0, "side": "rejected", "pair_id": f"{17:032}", "source": "a.jsonl", "source_row": 17}
    assert whole["outliers"][0] == first


def test_pairs_without_log_probs_do_not_count() -> None:
    pairs, logps = scored([([-1.0], [-2.0]), ([-2.0], [-1.0])])
    logps = pa.concat_tables([logps.slice(0, 1), schema.unscored_table(pairs.slice(1), ["no"])])
    assert merged([reference_of(pairs, logps)])["accuracy"] == 1.0
    none = schema.unscored_table(pairs, ["no", "no"])
    assert merged([reference_of(pairs, none)]) == {}


def test_of_labelled_completions() -> None:
    pairs, logps = scored([([-1.0], [-2.0]), ([-2.0, -4.0], [-1.0])])
    names = {"chosen": "completion", "rejected": "mismatched"}

    def named(table: pa.Table) -> pa.Table:
        new = [name.replace(old, names[old]) for name in table.column_names for old in names if old in name]
        rest = iter(new)
        return table.rename_columns(
            [next(rest) if any(old in name for old in names) else name for name in table.column_names]
        )

    labelled = named(pairs).append_column("label", pa.array([True, False]))
    told = merged([reference_of(labelled, named(logps))])
    assert told["per_token"] == {"desirable": -1.0, "undesirable": -3.0}
    assert "accuracy" not in told
    assert [each["per_token"] for each in told["outliers"]] == [-3.0, -1.0]
