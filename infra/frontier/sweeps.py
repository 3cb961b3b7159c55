"""What is trained at either scale: for each method a few settings, from far from the reference to near it."""

from typing import NamedTuple

MAIN = "DPO"
SEEDS = (0, 1, 2)  # of the order of pairs, and of adapters; the main method alone has all of them


class Sweep(NamedTuple):
    method: str
    seed: int
    grid: tuple[str, ...]
    set_: tuple[str, ...]


def _sweeps(grids: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> list[Sweep]:
    """Each asks policies and reference with a seed of its own: no two sweeps share the luck of a draw, and all that the
    reference has written, together, shows what the best of many of its samples is.
    """
    found: list[Sweep] = []
    wanted = [(method, SEEDS[0]) for method in grids] + [(MAIN, seed) for seed in SEEDS[1:]]
    for method, seed in wanted:
        grid, set_ = grids[method]
        seeds = f"train.seed={seed}", f"evaluate.sampling.seed={len(found)}"
        found.append(Sweep(method, seed, grid, (*set_, *seeds)))
    return found


# Losses with a reference go far or stay near by beta, as in the paper; the others by lambda, alpha and learning rate.
SCALES = {
    "vader": _sweeps(
        {
            "DPO": (("train.loss.beta=0.1,0.5,2",), ("train.loss=dpo",)),
            "IPO": (("train.loss.beta=0.5,3",), ("train.loss=ipo",)),
            "KTO": (("train.loss.beta=0.1,1",), ("train.loss=kto", "shard.rows=labelled")),
            "ORPO": (("train.loss.beta=0.3,3",), ("train.loss=orpo",)),
            "preferred-only": (("train.lr=5e-5,3e-4",), ("train.loss=sft",)),
            "unlikelihood": (("train.loss.alpha=0.1,0.5",), ("train.loss=unlikelihood",)),
        }
    ),
    "imdb": _sweeps(
        {
            "DPO": (("train.loss.beta=0.1,0.5,2,10",), ("train.loss=dpo",)),
            "IPO": (("train.loss.beta=0.5,3,15",), ("train.loss=ipo",)),
            "KTO": (("train.loss.beta=0.1,1,5",), ("train.loss=kto", "shard.rows=labelled")),
            "ORPO": (("train.loss.beta=0.3,3",), ("train.loss=orpo",)),
            "preferred-only": (("train.lr=1e-4,3e-4,1e-3",), ("train.loss=sft",)),
            "unlikelihood": (("train.loss.alpha=0.1,0.5",), ("train.loss=unlikelihood",)),
        }
    ),
}
