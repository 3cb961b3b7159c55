"""What the reference itself thinks of the pairs, and which ones it finds strangest: a report a part, and their sum."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages import schema

NAMED = 10  # outliers


def reference_of(pairs: pa.Table, scored: pa.Table) -> dict[str, Any]:
    """Of a part and its log-probs, row for row. It adds up: `merged`. Rows that have an error do not count."""
    good = pc.is_null(scored["error"])
    pairs, scored = pairs.filter(good), scored.filter(good)
    sides = schema.sides(pairs.column_names)
    sums = [scored[f"ref_{side}_logps"].to_numpy() for side in sides]
    tokens = [pc.list_value_length(scored[f"ref_{side}_token_logps"]).to_numpy() for side in sides]
    told: dict[str, Any] = {"pairs": len(pairs)}
    if "label" in pairs.column_names:
        label = pairs["label"].to_numpy()
        groups = {"desirable": (sums[0][label], tokens[0][label]), "undesirable": (sums[0][~label], tokens[0][~label])}
        strangest, side_of = sums[0] / tokens[0], np.zeros(len(pairs), int)
    else:
        groups = dict(zip(sides, zip(sums, tokens, strict=True), strict=True))
        told |= {"right": int((sums[0] > sums[1]).sum()), "margin": float((sums[0] - sums[1]).sum())}
        means = np.stack([total / number for total, number in zip(sums, tokens, strict=True)])
        strangest, side_of = means.min(0), means.argmin(0)
    told["groups"] = {name: [float(total.sum()), int(number.sum())] for name, (total, number) in groups.items()}
    lowest = np.argsort(strangest, kind="stable")[:NAMED]
    names = pairs.select(["pair_id", "source", "source_row"]).take(pa.array(lowest)).to_pylist()
    told["outliers"] = [
        {"per_token": round(float(strangest[i]), 4), "side": sides[side_of[i]]} | name
        for i, name in zip(lowest, names, strict=True)
    ]
    return told


def merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts. `accuracy`: the share of pairs whose chosen completion has the greater log-prob. All else in nats."""
    count = sum(report["pairs"] for report in reports)
    if not count:
        return {}
    told: dict[str, Any] = {}
    if any("right" in report for report in reports):
        told["accuracy"] = round(sum(report["right"] for report in reports) / count, 4)
        told["margin"] = round(sum(report["margin"] for report in reports) / count, 4)
    names = dict.fromkeys(name for report in reports for name in report["groups"])
    for name in names:
        total, tokens = (sum(each) for each in zip(*(report["groups"][name] for report in reports), strict=True))
        if tokens:
            told.setdefault("per_token", {})[name] = round(total / tokens, 4)
    outliers = [each for report in reports for each in report["outliers"]]
    told["outliers"] = sorted(outliers, key=lambda each: (each["per_token"], each["pair_id"]))[:NAMED]
    return told
