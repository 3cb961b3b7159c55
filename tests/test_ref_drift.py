"""Which differences at step 1 pass for rounding: those of a healthy run, tail and all, and not those of a fault."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import ContractError
from stages.train.objective.ref_drift import TOLERANCES, RefDrift

TOKENS = 80_000
BF16 = TOLERANCES["bfloat16"]


def healthy(rms: float) -> np.ndarray:
    """Of a heavy tail: Student's t of 3 degrees of freedom, whose standard deviation is the root of 3."""
    return np.abs(np.random.default_rng(0).standard_t(3, TOKENS) * rms / 3**0.5).astype(np.float32)


def test_a_healthy_tail_passes_though_single_tokens_are_far_off() -> None:
    """As large as two engines' of a 7B model; the largest was over the 1.0 that recipes used to allow it."""
    drift = RefDrift(healthy(0.032))
    assert drift.rms == pytest.approx(0.032, rel=0.2)
    assert drift.largest > 0.5
    drift.check(BF16)
    assert drift.figures == {
        "check/ref_drift": drift.largest, "check/ref_drift_mean": drift.mean, "check/ref_drift_rms": drift.rms,
        "check/ref_drift_p999": drift.high,
    }  # fmt: skip


def test_another_model_is_refused() -> None:
    off = np.abs(np.random.default_rng(0).normal(0, 0.5, TOKENS)).astype(np.float32)
    for routed in (False, True):
        with pytest.raises(ContractError, match=r"of 80000 tokens is .* largest .*: pair 7\. Likely causes"):
            RefDrift(off * (1 + routed), "pair 7").check(BF16, routed)


def test_another_precision_is_refused_in_float32() -> None:
    with pytest.raises(ContractError, match=r"root mean square .* more than train\.ref_tolerance 0\.005"):
        RefDrift(healthy(0.032)).check(TOLERANCES["float32"])
    RefDrift(healthy(0.032 / 8)).check(TOLERANCES["float32"])  # what TF32 leaves


def test_a_fault_at_one_token_of_each_completion_is_refused() -> None:
    """Its root mean square alone would pass."""
    sizes = healthy(0.032)
    sizes[::400] += 2.5
    drift = RefDrift(sizes)
    assert drift.rms < BF16
    with pytest.raises(ContractError, match=r"largest 0\.1 % .* more than 10 times train\.ref_tolerance 0\.2"):
        drift.check(BF16)


def test_a_router_s_other_choices_pass() -> None:
    sizes = healthy(0.032)
    sizes[::50] += 2.0
    drift = RefDrift(sizes)
    drift.check(BF16, routed=True)
    with pytest.raises(ContractError):
        drift.check(BF16)


def test_what_is_not_a_number_is_refused() -> None:
    for routed in (False, True):
        with pytest.raises(ContractError):
            RefDrift(np.array([0.0, np.nan], np.float32)).check(BF16, routed)


@given(
    st.lists(st.floats(0, 8, width=32), min_size=1, max_size=30),
    st.lists(st.floats(0, 8, width=32), min_size=1, max_size=30),
)
def test_ranks_add_up_to_one(first: list[float], second: list[float]) -> None:
    a, b = (RefDrift(np.array(each, np.float32), str(len(each))) for each in (first, second))
    both = RefDrift() + a + b
    assert both.figures == RefDrift(np.array(first + second, np.float32)).figures
    assert both.where == (a if a.largest > b.largest else b).where
