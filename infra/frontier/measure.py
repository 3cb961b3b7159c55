"""What evaluations of a scale's policies say together: points, the best of n, and shares, with their intervals."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from infra.frontier.curve import Points, best_of, kl_of_best, range_of, share
from infra.frontier.sweeps import MAIN, Sweep
from stages.evaluate.evaluation import Evaluation
from stages.evaluate.statistics.bootstrap import Estimate, bootstrap

_BEST_OF = (1, 2, 4, 8, 16)


class Trial(NamedTuple):
    """A policy and what it wrote: for each prompt means over its samples, and what the reference wrote there."""

    method: str
    seed: int
    drawn: int  # the seed with which both wrote
    fields: dict[str, Any]
    kl: dict[str, float]
    reward: dict[str, float]
    reference: dict[str, list[float]]  # rewards
    accuracy: dict[str, float] | None = None  # of held-out pairs it tells the better from the worse; not of all losses


def trial_of(sweep: Sweep, fields: dict[str, Any], evaluation: Evaluation) -> Trial:
    kl, reward, reference = {}, {}, {}
    for row in evaluation.samples():
        if row["policy_reward"] is None or row["reference_reward"] is None:
            continue
        name = row["prompt_id"]
        ratio = float(np.sum(row["policy_by_policy"], dtype=float) - np.sum(row["policy_by_reference"], dtype=float))
        kl.setdefault(name, []).append(ratio)
        reward.setdefault(name, []).append(row["policy_reward"])
        reference.setdefault(name, []).append(row["reference_reward"])
    means = ({name: float(np.mean(values)) for name, values in each.items()} for each in (kl, reward))
    apart = evaluation.figures.get("held out", {}).get("eval", {})
    return Trial(sweep.method, sweep.seed, sweep.drawn, fields, *means, reference, apart.get("rewards/accuracies"))


def figures_of(trials: Sequence[Trial]) -> dict[str, Any]:
    """All of them on the prompts that they share; prompts are drawn again, each with all that was written to it.

    Every trial of a seed of the main method is compared with all trials of another method, and with all trials of all
    other methods together.
    """
    prompts = sorted(set.intersection(*(set(trial.kl) for trial in trials)))
    kls = np.array([[trial.kl[name] for trial in trials] for name in prompts])
    rewards = np.array([[trial.reward[name] for trial in trials] for name in prompts])
    written = np.array([[value for trial in _apart(trials) for value in trial.reference[name]] for name in prompts])
    seeds = sorted({trial.seed for trial in trials if trial.method == MAIN})
    methods = list(dict.fromkeys(trial.method for trial in trials if trial.method != MAIN))
    groups = {method: _where(trials, method) for method in methods}
    if len(methods) > 1:
        groups["all of them"] = [place for places in groups.values() for place in places]
    mains = [_where(trials, MAIN, seed) for seed in seeds]

    def shares(weights: np.ndarray) -> np.ndarray:
        found = []
        for each in weights / weights.sum(1, keepdims=True):
            kl, reward, start = each @ kls, each @ rewards, float(each @ written.mean(1))
            compared = [[share(_at(kl, reward, a), _at(kl, reward, b), start) for b in groups.values()] for a in mains]
            found.append([*np.ravel(compared), *np.mean(compared, 0)])
        return np.array(found)

    told = bootstrap(shares, np.array(prompts)) if mains and groups else []
    several, count = [i for i in _BEST_OF if i <= written.shape[1]], len(groups)
    kl, reward = kls.mean(0), rewards.mean(0)
    best = _means(np.stack([best_of(written, n) for n in several], 1), prompts)
    return {
        "prompts": len(prompts),
        "reference": {"reward": best[0]._asdict(), "samples": int(written.size)},
        "trials": [
            {"method": trial.method, "seed": trial.seed, "set": trial.fields}
            | {"kl": of._asdict(), "reward": to._asdict()}
            | ({} if trial.accuracy is None else {"accuracy on held-out pairs": trial.accuracy})
            for trial, of, to in zip(trials, _means(kls, prompts), _means(rewards, prompts), strict=True)
        ],
        "best of n": [
            {"n": n, "kl at most": kl_of_best(n), "reward": each._asdict()}
            for n, each in zip(several, best, strict=True)
        ],
        f"share of the KL range at which {MAIN} is at or above": {
            name: {
                "up to": min(range_of(_at(kl, reward, main), _at(kl, reward, places)) for main in mains),
                "by seed": [told[seed * count + number].value for seed in range(len(mains))],
                "mean": told[len(mains) * count + number]._asdict(),
            }
            for number, (name, places) in enumerate(groups.items() if told else ())
        },
    }


def _apart(trials: Sequence[Trial]) -> list[Trial]:
    """One of each sweep: for the others the reference has written the same, with the same seed."""
    return list({trial.drawn: trial for trial in trials}.values())


def _where(trials: Sequence[Trial], method: str, seed: int | None = None) -> list[int]:
    return [i for i, trial in enumerate(trials) if trial.method == method and seed in (None, trial.seed)]


def _at(kl: np.ndarray, reward: np.ndarray, places: list[int]) -> Points:
    return Points(kl[places].tolist(), reward[places].tolist())


def _means(table: np.ndarray, prompts: list[str]) -> list[Estimate]:
    return bootstrap(lambda weights: weights @ table / weights.sum(1, keepdims=True), np.array(prompts))
