"""The figure of a scale, from its JSON."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from infra.frontier.curve import Points, reached
from infra.frontier.sweeps import MAIN

# Told apart by those who see red and green alike (Okabe and Ito), and by their shapes.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_SHAPES = "osD^vP"
_INK = {"light": "#1f2328", "dark": "#f0f6fc"}


def draw(figures: dict[str, Any], title: str, folder: Path, name: str) -> list[Path]:
    """`name`-light.svg and `name`-dark.svg under `folder`: a mark a policy, a line what its method reaches."""
    made = []
    for kind, ink in _INK.items():
        style = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
        # The same figures make the same file.
        fixed = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 11, "legend.frameon": False}
        with plt.rc_context(style | fixed):
            drawn, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
            _draw(axes, figures, ink)
            axes.set(xlabel="KL(policy || reference), nats", ylabel="expected reward", title=title)
            # Rewards rise about with the root of the KL, and a method that runs away would squeeze all others together.
            axes.set_xscale("function", functions=(lambda kl: np.sqrt(np.maximum(kl, 0)), np.square))
            axes.set_xlim(left=0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
            made.append(folder / f"{name}-{kind}.svg")
            drawn.savefig(made[-1], transparent=True, metadata={"Date": None, "Creator": None})
            plt.close(drawn)
    return made


def _draw(axes: Any, figures: dict[str, Any], ink: str) -> None:
    start = figures["reference"]["reward"]["value"]
    trials = figures["trials"]
    methods = sorted({trial["method"] for trial in trials}, key=lambda name: (name != MAIN, name))
    for place, method in enumerate(methods):
        own = [trial for trial in trials if trial["method"] == method]
        look = {"color": _COLOURS[place], "zorder": 3 if method == MAIN else 2}
        for trial in own:
            values = [trial[axis]["value"] for axis in ("kl", "reward")]
            bars = {"xerr": _bar(trial["kl"]), "yerr": _bar(trial["reward"])}
            axes.errorbar(*values, **bars, fmt=_SHAPES[place], markersize=5, elinewidth=0.6, alpha=0.75, **look)
        seeds = {seed: _points([trial for trial in own if trial["seed"] == seed]) for seed in {t["seed"] for t in own}}
        at = np.linspace(0, min(max(0.0, *points.kl) for points in seeds.values()), 200)
        lines = np.stack([reached(points, start, at) for points in seeds.values()])
        of = f", {len(seeds)} seeds" if len(seeds) > 1 else ""
        axes.plot(at, lines.mean(0), linewidth=2.2 if method == MAIN else 1.2, label=method + of, **look)
        if len(seeds) > 1:
            axes.fill_between(at, lines.min(0), lines.max(0), alpha=0.2, linewidth=0, **look)
    best = figures["best of n"]
    kls, rewards = [each["kl at most"] for each in best], [each["reward"]["value"] for each in best]
    axes.plot(
        kls, rewards, color=ink, linestyle="--", marker="x", markersize=5, linewidth=1, label="best of n (KL: at most)"
    )
    for each in best:
        axes.annotate(
            str(each["n"]),
            (each["kl at most"], each["reward"]["value"]),
            (0, 6),
            textcoords="offset points",
            fontsize="x-small",
            ha="center",
        )
    axes.axhline(start, color=ink, linewidth=0.6, linestyle=":", label="reference")


def _points(trials: list[dict[str, Any]]) -> Points:
    return Points(*([trial[axis]["value"] for trial in trials] for axis in ("kl", "reward")))


def _bar(estimate: dict[str, float]) -> list[list[float]]:
    return [[estimate["value"] - estimate["low"]], [estimate["high"] - estimate["value"]]]
