"""What is said of held-out pairs: of all that were set apart, by the source they are from, and of each named set."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stages.evaluate.statistics.agreement import calibration, correlations
from stages.evaluate.statistics.bootstrap import bootstrap
from stages.train.objective.losses import LabelledLogps, Logps, PairLogps, losses_of, remembered
from stages.train.objective.named.loss import Loss
from stages.train.objective.report import MOST_SOURCES, columns

_APART = "eval"  # the split that is set apart from the training pairs; a named set is "eval/<name>"
_SEEN = "seen/"


def figures_of(table: pa.Table, sources: np.ndarray, loss: Loss) -> dict[str, Any]:
    """Of rows that `Reader` has written, and their sources: each split, and each source of those set apart where there
    are several.

    Where the loss of a pair depends on others, these are the rows of its group. That is what differs from `eval/..` of
    training, where they are those of a step.
    """
    splits = np.array(table["split"].to_pylist(), object)
    groups = {str(split): splits == split for split in sorted(set(splits))}
    apart = groups.get(_APART, np.zeros(len(table), bool))
    names = sorted(set(sources[apart]))
    if 1 < len(names) <= MOST_SOURCES:
        groups |= {f"{_APART}/{name}": apart & (sources == name) for name in names}
    return {name: _figures(table.filter(pa.array(rows)), loss) for name, rows in groups.items()}


def with_losses(table: pa.Table, loss: Loss) -> pa.Table:
    """The rows, each with the loss that it has in its split."""
    splits = np.array(table["split"].to_pylist(), object)
    found = np.zeros(len(table), np.float32)
    for split in set(splits):
        found[splits == split] = losses(table.filter(pa.array(splits == split)), loss)[1].numpy()
    return table.append_column("loss", pa.array(found))


def losses(table: pa.Table, loss: Loss) -> tuple[Logps, torch.Tensor]:
    """What the loss sees of the rows, and what it says of each, [n]."""
    found = {
        name.removeprefix(_SEEN): torch.tensor(table[name].to_numpy())
        for name in table.column_names
        if name.startswith(_SEEN)
    }
    seen: Logps = LabelledLogps(**found) if "label" in found else PairLogps(**found)
    if isinstance(seen, PairLogps):
        seen = seen._replace(mean_length=seen.chosen_length.mean().expand_as(seen.chosen))
    return seen, losses_of(seen, loss, remembered(seen, loss, {}))


def _figures(table: pa.Table, loss: Loss) -> dict[str, Any]:
    seen, values = losses(table, loss)
    prompts = np.array(table["prompt_id"].to_pylist())
    found = {name: (rows.numpy(), each.double().numpy()) for name, (rows, each) in columns(seen, values, loss).items()}
    sums, counts = np.zeros((2, len(table), len(found)))
    for place, (rows, each) in enumerate(found.values()):
        np.add.at(sums[:, place], rows, each)
        np.add.at(counts[:, place], rows, 1)
    names = list(found)
    sides = [names.index(f"rewards/{side}") for side in ("chosen", "rejected") if f"rewards/{side}" in found]

    def means(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            each = (weights @ sums) / (weights @ counts)
        return np.column_stack([each, each[:, sides[0]] - each[:, sides[1]]]) if len(sides) == 2 else each

    told: dict[str, Any] = {"pairs": len(table)}
    told |= dict(zip([*names, "rewards/margins"], bootstrap(means, prompts), strict=False))
    if loss.reference and not loss.labelled:
        margins = found["rewards/chosen"][1] - found["rewards/rejected"][1]
        told["calibration"] = calibration(margins, prompts)
        graded = ~np.isnan(grades := np.array(table["graded"].to_pylist(), np.float64))
        if agreement := correlations(margins[graded], grades[graded], prompts[graded]):
            told["with graded margins"] = {"pairs": int(graded.sum())} | agreement
    return told
