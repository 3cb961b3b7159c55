"""Prometheus metrics of the stage that runs, by ray.util.metrics: they are on the metrics port of the driver's node.

The driver sets them, of what workers report after a part or a step: so they cost workers nothing, and no count is lost
with a worker that comes and goes. Labels are of few values: a stage's name, and its unit.
"""

from typing import Any

from stages.progress import Progress

# Name -> what it is. Ray puts `ray_` before it, and `_total` behind a counter's.
GAUGES = {
    "raydpo_done": "Units (parts, slices, steps) of the stage that are finished",
    "raydpo_planned": "Units that it has",
    "raydpo_loss": "Loss of the last step",
    "raydpo_margin": "Mean reward margin of the last step",
    "raydpo_accuracy": "Share of the last step's pairs with a margin above 0",
    "raydpo_grad_norm": "Norm of the last step's gradient",
    "raydpo_tokens_per_second": "Tokens a second: of the last step, or of all parts since the start of the run",
    "raydpo_memory_gb": "Peak memory of a worker, 1e9 bytes: the last one that reported",
    "raydpo_actors": "Actors that finished a part of late",
}
COUNTERS = {
    "raydpo_rows": "Rows gone through",
    "raydpo_tokens": "Tokens computed",
    "raydpo_seconds": "Seconds of work on them, of all workers together",
    "raydpo_rejected": "Rows set aside",
}
_OF_FIGURES = {
    "loss": "raydpo_loss", "rewards/margins": "raydpo_margin", "rewards/accuracies": "raydpo_accuracy",
    "grad_norm": "raydpo_grad_norm", "tokens_per_second": "raydpo_tokens_per_second",
    "tokens/s": "raydpo_tokens_per_second", "drawn/s": "raydpo_tokens_per_second",
    "peak_memory_gb": "raydpo_memory_gb", "actors": "raydpo_actors",
}  # fmt: skip


class Metered:
    """A stage's Progress that is told to Prometheus as well. Ray must be connected."""

    def __init__(self, progress: Progress, stage: str):
        from ray.util.metrics import Counter, Gauge

        self._progress, self._tags, self._unit = progress, {"stage": stage}, ""
        self._gauges = {
            name: Gauge(name, told, ("stage", "unit") if name in ("raydpo_done", "raydpo_planned") else ("stage",))
            for name, told in GAUGES.items()
        }
        self._counters = {name: Counter(name, told, ("stage",)) for name, told in COUNTERS.items()}

    def start(self, total: int, done: int, unit: str) -> None:
        self._progress.start(total, done, unit)
        self._unit = unit
        self._set("raydpo_planned", total, unit=unit)
        self._set("raydpo_done", done, unit=unit)

    def advance(self, done: int, **figures: Any) -> None:
        self._progress.advance(done, **figures)
        self._set("raydpo_done", done, unit=self._unit)
        for figure, value in figures.items():
            if figure in _OF_FIGURES and isinstance(value, int | float):
                self._set(_OF_FIGURES[figure], value)

    def made(self, rows: float = 0, tokens: float = 0, seconds: float = 0, rejected: float = 0) -> None:
        self._progress.made(rows, tokens, seconds, rejected)
        for name, amount in zip(COUNTERS, (rows, tokens, seconds, rejected), strict=True):
            if amount > 0:  # Ray refuses to count nothing
                self._counters[name].inc(amount, self._tags)

    def notice(self, message: str) -> None:
        self._progress.notice(message)

    def _set(self, gauge: str, value: float, **tags: str) -> None:
        self._gauges[gauge].set(value, self._tags | tags)
