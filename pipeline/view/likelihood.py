"""What a falling `rewards/chosen` means: whether this loss leads there, and what to try where it has gone far."""

from collections.abc import Iterator, Sequence
from typing import Any

from stages.train.config import TrainConfig

# Nats a token by which `logps/chosen` may fall before remedies are named. exp(-0.1) is 0.90: each token of what was
# preferred has become a tenth less likely, and a completion of 200 tokens e^20 times. A reward of -1 at beta 0.1, as
# well-behaved trainings end with, is 10 nats, or 0.05 a token of 200: half of this.
LIMIT = 0.1
# Losses with a term that pulls chosen up by itself. All others see the difference of both sides alone.
HOLD_UP = {
    "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "dpop", "rpo", "sft", "unlikelihood", "orpo", "cpo", "cpo_hinge",
    "cpo_ipo", "cpo_simpo", "kto", "apo_zero_unpaired", "bco",
}  # fmt: skip
PUSH_DOWN = {"apo_down"}  # by design: for chosen completions that are worse than what the policy writes
_LEAST = 0.001  # of a reward: what is less is rounding


def told(metrics: Sequence[dict[str, Any]], config: TrainConfig) -> Iterator[str]:
    """Sentences, of held-out pairs where they were looked at twice, else of steps; none where chosen has not fallen."""
    # Steps are of other pairs each: there, what is relative to the reference can be compared, and log-probs cannot.
    for prefix in ("eval/", "") if config.loss.reference else ("eval/",):
        sides = [f"{prefix}rewards/{side}" for side in ("chosen", "rejected")]
        lines = [line for line in metrics if all(side in line for side in sides)]
        if len(lines) < 2:
            continue
        chosen, rejected = (lines[-1][side] - lines[0][side] for side in sides)
        if chosen < -_LEAST:
            yield f"{prefix}rewards/chosen fell by {-chosen:.3g}: {_verdict(chosen, rejected, config)}."
        name = f"{prefix}logps/chosen_per_token"
        fell = lines[0][name] - lines[-1][name] if prefix and name in lines[0] else 0.0  # older metrics do not have it
        if fell > LIMIT:
            yield (
                f"eval/logps/chosen fell by {fell:.2g} nats a token, more than {LIMIT:g} (each token a tenth less "
                f"likely, 200 of them e^20 times): look at samples, and try {_remedies(config)}."
            )
        return


def _verdict(chosen: float, rejected: float, config: TrainConfig) -> str:
    names, margin = {term.name for term in config.loss.terms}, chosen - rejected
    if lowers := names & PUSH_DOWN:
        return f"expected, as {'/'.join(sorted(lowers))} lowers chosen by design"
    if margin <= 0:
        return f"not expected, as rejected has not fallen further (margin {margin:+.3g}): look at labels and train.lr"
    if held := names & HOLD_UP:
        return f"not expected, as {'/'.join(sorted(held))} holds chosen up; the margin grew by {margin:.3g}"
    return (
        f"expected, as {'/'.join(sorted(names))} sees the difference of both sides alone; rejected fell by "
        f"{-rejected:.3g}, and the margin grew by {margin:.3g}"
    )


def _remedies(config: TrainConfig) -> str:
    """Of what this training has not."""
    names = {term.name for term in config.loss.terms}
    tries = []
    if not names & {"sft", "rpo"}:
        tries.append("a likelihood term (train.loss: rpo, or a list with sft)")
    if "dpop" not in names and config.loss.reference and not config.loss.labelled:
        tries.append("train.loss: dpop")
    tries.append(f"a lower train.lr than {config.lr:g}")
    betas = [term.beta for term in config.loss.terms if "beta" in type(term).model_fields]
    if betas:
        tries.append(f"a higher beta than {max(betas):g}")
    tries.append("fewer steps (train.eval_steps with export: best)")
    return ", ".join(tries[:-1]) + f", or {tries[-1]}"
