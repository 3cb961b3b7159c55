"""The best evaluation, and when one stops waiting for a better one."""

import json
import math
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from stages.train.best import Best, score
from stages.train.config import TrainConfig

values = st.lists(st.floats(-5, 5, width=16) | st.just(math.nan) | st.just(math.inf), min_size=1, max_size=12)


def after(evaluations: list[float], config: TrainConfig, resumed_at: int = 0) -> tuple[Best, int]:
    """The best evaluation, and after which one training stopped, from 1; through a checkpoint on the way."""
    best, stopped = Best(), 0
    for number, value in enumerate(evaluations, start=1):
        if number == resumed_at:
            best = Best(**json.loads(json.dumps(asdict(best))))
        best, stopped = best.after(number * 10, value, config), number
        if best.says_stop(config):
            break
    return best, stopped


@given(values, st.booleans(), st.integers(1, 12))
def test_the_best_is_the_first_of_the_best(evaluations: list[float], highest: bool, resumed_at: int) -> None:
    config = TrainConfig(policy="m", best_metric="eval/x", best_is="highest" if highest else "lowest")
    best, stopped = after(evaluations, config, resumed_at)
    assert stopped == len(evaluations)
    scores = [score(value, config) if math.isfinite(value) else math.inf for value in evaluations]
    if all(map(math.isinf, scores)):
        assert best == Best(waited=len(scores))
    else:
        index = scores.index(min(scores))
        assert (best.step, best.value) == ((index + 1) * 10, evaluations[index])
        assert best.waited == len(scores) - 1 - index


@given(values, st.integers(1, 4), st.integers(1, 12))
def test_training_stops_at_the_first_stretch_without_gain(
    evaluations: list[float], patience: int, resumed_at: int
) -> None:
    config = TrainConfig(policy="m", eval_steps=10, patience=patience)
    best, stopped = after(evaluations, config, resumed_at)
    assert (best, stopped) == after(evaluations, config)
    assert best.waited <= patience
    assert (best.waited == patience) or stopped == len(evaluations)
    lowest, waited = math.inf, 0
    for number, value in enumerate(evaluations, start=1):
        waited = 0 if math.isfinite(value) and value < lowest else waited + 1
        lowest = min(lowest, value) if math.isfinite(value) else lowest
        if waited == patience:
            assert stopped == number
            break
    else:
        assert stopped == len(evaluations)
