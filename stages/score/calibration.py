"""How far the cached log-probs are from what training computes: the price of another precision, engine or kernel.

A sample is computed again by the forward pass of training, in the precision of training. What differs beyond rounding
is a fault, and its pattern tells which.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from stages import schema
from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.cpu_environment import CPU_ENVIRONMENT
from stages.errors import ContractError
from stages.score.config import Acceptance, ScoreConfig, ScoreResources

_PARTS = 16  # at most so many are read for the sample
_START = 4  # trained tokens of a completion that are its start
_ROUTED = 3  # as stages/train/objective/ref_drift.py has it


@dataclass(frozen=True)
class Differences:
    """Cached and live log-probs of the trained tokens of n completions: chosen, rejected, chosen, ..."""

    cached: list[np.ndarray]
    live: list[np.ndarray]
    routed: bool = False  # a router chooses experts: where two are nearly alike, a token is moved far

    @property
    def size(self) -> float:
        """Of a token's difference: root mean square, or with a router the mean, and at least a third of the former."""
        tokens = self.tokens
        return max(float(np.abs(tokens).mean()), _rms(tokens) / _ROUTED) if self.routed else _rms(tokens)

    @property
    def tokens(self) -> np.ndarray:
        return np.concatenate(self.cached) - np.concatenate(self.live)

    @property
    def sequences(self) -> np.ndarray:
        """Of the sums over a completion [n], float64."""
        return np.array([np.sum(a - b, dtype=np.float64) for a, b in zip(self.cached, self.live, strict=True)])

    @property
    def margins(self) -> np.ndarray:
        """Of chosen minus rejected [n / 2]: what enters the loss, times beta."""
        return self.sequences[0::2] - self.sequences[1::2]

    def cause(self) -> str:
        """The likeliest reason for differences that rounding does not explain."""
        size = self.size
        ahead = np.concatenate([a[:-1] - b[1:] for a, b in zip(self.cached, self.live, strict=True)])
        behind = np.concatenate([a[1:] - b[:-1] for a, b in zip(self.cached, self.live, strict=True)])
        if len(ahead) and min(_rms(ahead), _rms(behind)) < size / 3:
            return "they fit when moved by one token: the engine's positions are off by one"
        start = _rms(np.concatenate([a[:_START] - b[:_START] for a, b in zip(self.cached, self.live, strict=True)]))
        rest = np.concatenate([a[_START:] - b[_START:] for a, b in zip(self.cached, self.live, strict=True)])
        if start > 3 * _rms(rest):
            return (
                "they differ at the start of completions, and less and less after it: scored after another prompt "
                "(chat template, truncation, or a token more at its start)"
            )
        if size > 0.2 or np.corrcoef(np.concatenate(self.cached), np.concatenate(self.live))[0, 1] < 0.95:
            return "they are of another size altogether: another model's weights, or another revision of them"
        rounding = (
            "they scatter around zero like rounding: computed in a lower precision (dtype, or a quantized engine)"
        )
        routing = ", or its router takes other experts (score.backend: torch has the kernels of training)"
        return rounding + (routing if self.routed else "")


def calibrate(
    config: ScoreConfig, pairs: PreferencePairs, logprobs: ReferenceLogprobs, resources: ScoreResources, longest: int
) -> dict[str, Any]:
    """Compare a sample in a process of its own, which has the model for as long as that takes. Returns facts.

    A model that no one GPU holds is spread over as many as an actor of the pool had. Where even these are too small for
    it in the precision of training, the facts are a warning, and what was scored stands.
    """
    measure = ray.remote(
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        runtime_env={} if resources.gpus_per_actor else {"env_vars": CPU_ENVIRONMENT},
        max_retries=3,
    )(_measure)
    found: Differences | None = ray.get(measure.remote(config, pairs, logprobs, resources, longest))
    if found is None:
        gpus, dtype = resources.gpus_per_actor, config.accept.dtype_of(config.dtype)
        return {
            "warning": f"not calibrated: {config.model} in {dtype} does not fit on {gpus} GPUs, of which an actor has "
            "as many. Give actors more (cluster.score.gpus_per_actor), or set score.accept.calibration_pairs: 0"
        }
    return judge(found, config.accept, exact=config.dtype == config.accept.dtype_of(config.dtype) == "float32")


def judge(found: Differences, accept: Acceptance, exact: bool) -> dict[str, Any]:
    """Facts of the differences; a warning among them past the limit, ContractError past five times that.

    `exact`: both sides are float32.
    """
    limit = accept.max_token_difference or (1e-3 if exact else 0.1)
    tokens = found.tokens
    facts: dict[str, Any] = {
        "pairs": len(found.margins),
        "per token": _spread(tokens),
        "per completion": _spread(found.sequences),
        "beta": accept.beta,
        "margin": _spread(accept.beta * found.margins),  # the noise that it adds to what the loss sees
    }
    if (size := found.size) > limit:
        kind = "the mean, or a third of the root mean square," if found.routed else "root mean square"
        message = (
            f"the cached log-probs differ from the forward pass of training by {size:.3g} nats a token ({kind} "
            f"of {len(tokens)} tokens), more than score.accept.max_token_difference {limit:g}: {found.cause()}"
        )
        if size > 5 * limit:
            raise ContractError(f"{message}. Mend that, delete the parts and score again, or raise the limit")
        facts["warning"] = message
    return facts


def _measure(
    config: ScoreConfig, pairs: PreferencePairs, logprobs: ReferenceLogprobs, resources: ScoreResources, longest: int
) -> Differences | None:
    """None where the GPUs have not room enough."""
    import torch  # with what follows seconds, which the driver need not spend

    from stages.score.torch_scorer import TorchScorer

    accept = config.accept
    sample, scored = _sample(pairs, logprobs, accept.calibration_pairs)
    try:
        live = TorchScorer(config.model_copy(update={"dtype": accept.dtype_of(config.dtype)}), resources, longest)
        computed = live.token_logps(sample)
    except torch.OutOfMemoryError:
        return None
    both = (scored[f"ref_{side}_token_logps"].to_pylist() for side in schema.sides(scored.column_names))
    cached = [np.asarray(values) for pair in zip(*both, strict=True) for values in pair]
    return Differences(cached, [np.asarray(values) for values in computed], live.model.routes)


def _sample(pairs: PreferencePairs, logprobs: ReferenceLogprobs, count: int) -> tuple[pa.Table, pa.Table]:
    """Some scored pairs of some parts. Rows are sorted by a hash, so the first are as good as any."""
    parts = pairs.parts
    chosen = [parts[i] for i in np.unique(np.linspace(0, len(parts) - 1, min(len(parts), _PARTS)).astype(int))]
    each = -(-count // len(chosen))
    sampled, scored = [], []
    for part in chosen:
        table = pairs.read(part)
        values = logprobs.read(part, table)
        good = pc.is_null(values["error"])
        sampled.append(table.filter(good).slice(0, each))
        scored.append(values.filter(good).slice(0, each))
    return pa.concat_tables(sampled).slice(0, count), pa.concat_tables(scored).slice(0, count)


def _spread(values: np.ndarray) -> dict[str, float]:
    size = np.abs(values)
    return {
        "mean": float(values.mean()),
        "sd": float(values.std()),
        "p95": float(np.quantile(size, 0.95)),
        "max": float(size.max()),
    }


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if len(values) else 0.0
