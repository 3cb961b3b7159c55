"""What is trained at either scale: for each method a few settings, from far from the reference to near it."""

from typing import NamedTuple

MAIN = "DPO"
SEEDS = (0, 1, 2)  # of the order of pairs, and of adapters; the main method alone has all of them


class Sweep(NamedTuple):
    method: str
    seed: int
    grid: str
    set_: tuple[str, ...]
    drawn: int  # the seed with which policies and reference write when they are evaluated


def _sweeps(*rows: tuple[str, tuple[int, ...], str, str]) -> list[Sweep]:
    """Of methods, seeds, grids and what else is set.

    Each draws with a seed of its own: no two sweeps share the luck of it, and all that the reference has written,
    together, shows what the best of many of its samples is.
    """
    found: list[Sweep] = []
    for method, seeds, grid, set_ in rows:
        for seed in seeds:
            own = f"train.seed={seed}", f"evaluate.sampling.seed={len(found)}"
            found.append(Sweep(method, seed, grid, (*set_.split(), *own), len(found)))
    return found


# With twice the batch of the recipe, as a pair is two completions: so it learns as many a step as the others.
_KTO = "train.loss=kto shard.rows=labelled"

# Losses with a reference go far or stay near by beta, as in the paper; the others by lambda, alpha and learning rate.
SCALES = {
    "vader": _sweeps(
        (MAIN, SEEDS, "train.loss.beta=0.1,0.5,2", "train.loss=dpo"),
        ("IPO", SEEDS[:1], "train.loss.beta=0.5,3", "train.loss=ipo"),
        ("KTO", SEEDS[:1], "train.loss.beta=0.1,1", f"{_KTO} train.global_batch=16"),
        ("ORPO", SEEDS[:1], "train.loss.beta=0.5,3", "train.loss=orpo"),
        ("preferred-only", SEEDS[:1], "train.lr=1e-4,4e-4", "train.loss=sft"),
        ("unlikelihood", SEEDS[:1], "train.loss.alpha=0.1,0.5", "train.loss=unlikelihood"),
    ),
    "imdb": _sweeps(
        (MAIN, SEEDS[:1], "train.loss.beta=0.1,0.5,2", "train.loss=dpo"),
        ("IPO", SEEDS[:1], "train.loss.beta=0.5,3,15", "train.loss=ipo"),
        ("KTO", SEEDS[:1], "train.loss.beta=0.1,1,5", f"{_KTO} train.global_batch=64"),
        ("preferred-only", SEEDS[:1], "train.lr=1e-4,3e-4,1e-3", "train.loss=sft"),
        (MAIN, SEEDS[1:2], "train.loss.beta=0.1,0.5,2", "train.loss=dpo"),
        ("ORPO", SEEDS[:1], "train.loss.beta=0.3,3", "train.loss=orpo"),
        (MAIN, SEEDS[2:], "train.loss.beta=0.1,0.5,2", "train.loss=dpo"),
        ("unlikelihood", SEEDS[:1], "train.loss.alpha=0.1,0.5", "train.loss=unlikelihood"),
    ),
}
