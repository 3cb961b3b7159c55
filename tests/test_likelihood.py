"""What is said of a falling `rewards/chosen`."""

from typing import Any

import pytest

from pipeline.view.likelihood import HOLD_UP, PUSH_DOWN, told
from stages.train.config import TrainConfig
from stages.train.objective.named.loss import BY_NAME


def line(step: int, chosen: float, rejected: float, per_token: float, prefix: str = "eval/") -> dict[str, Any]:
    return {
        "step": step,
        f"{prefix}rewards/chosen": chosen,
        f"{prefix}rewards/rejected": rejected,
        f"{prefix}logps/chosen_per_token": per_token,
    }


def said(after: tuple[float, float, float], loss: Any = "sigmoid", prefix: str = "eval/") -> str:
    config = TrainConfig(policy="m", loss=loss, lr=1e-6)
    return "\n".join(told([line(0, 0.0, 0.0, -1.0, prefix), line(9, *after, prefix)], config))


def test_a_fall_is_expected_of_losses_that_see_a_difference_alone() -> None:
    assert said((-0.4, -1.5, -1.05)) == (
        "eval/rewards/chosen fell by 0.4: expected, as sigmoid sees the difference of both sides alone; rejected fell "
        "by 1.5, and the margin grew by 1.1."
    )
    assert said((0.4, -1.5, -0.9)) == ""
    assert said((-0.0004, -1.5, -1.0)) == ""


@pytest.mark.parametrize(
    ("after", "loss", "message"),
    [
        (
            (-0.4, -0.3, -1.0),
            "sigmoid",
            "not expected, as rejected has not fallen further (margin -0.1): look at labels",
        ),
        ((-0.4, -1.4, -1.0), "rpo", "not expected, as rpo holds chosen up; the margin grew by 1."),
        ((-0.4, -1.4, -1.0), ["sigmoid", "sft"], "not expected, as sft holds chosen up; the margin grew by 1."),
        ((-0.4, -1.4, -1.0), "apo_down", "expected, as apo_down lowers chosen by design."),
    ],
)
def test_what_is_not_expected(after: tuple[float, float, float], loss: Any, message: str) -> None:
    assert message in said(after, loss)


def test_far_is_a_tenth_of_a_nat_a_token_and_remedies_are_what_is_not_done_yet() -> None:
    assert "nats a token" not in said((-0.4, -1.5, -1.09))
    far = said((-4.0, -9.0, -1.25))
    assert "eval/logps/chosen fell by 0.25 nats a token, more than 0.1" in far
    assert (
        "try a likelihood term (train.loss: rpo, or a list with sft), train.loss: dpop, a lower train.lr than 1e-06, a "
        "higher beta than 0.1, or fewer steps (train.eval_steps with export: best)." in far
    )
    held = said((-4.0, -9.0, -1.25), {"name": "rpo", "beta": 0.3})
    assert "try train.loss: dpop, a lower train.lr" in held
    assert "a higher beta than 0.3" in held
    assert "dpop" not in said((-4.0, -9.0, -1.25), "simpo")


def test_without_held_out_pairs_rewards_of_steps_are_compared_and_log_probs_are_not() -> None:
    """Steps are of other pairs each, and a reward without a reference is a log-prob."""
    assert "rewards/chosen fell by 0.4: expected" in said((-0.4, -1.5, -2.0), prefix="")
    assert "nats a token" not in said((-0.4, -1.5, -2.0), prefix="")
    assert said((-0.4, -1.5, -2.0), "simpo", prefix="") == ""
    assert list(told([{"step": 0}, {"step": 1, "loss": 0.7}], TrainConfig(policy="m"))) == []


def test_the_named_losses_are_there() -> None:
    assert BY_NAME.keys() >= HOLD_UP | PUSH_DOWN
    assert not HOLD_UP & PUSH_DOWN
