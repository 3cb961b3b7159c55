"""How many steps there are, and who computes which pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.train.config import TrainConfig
from stages.train.pairs.shares import num_steps, shares
from stages.train.schedule import lr_at


@given(
    lengths=st.lists(st.integers(2, 50), min_size=1, max_size=40), world=st.integers(1, 6), budget=st.integers(1, 400)
)
def test_the_ranks_share_a_batch_exactly_and_keep_step(lengths: list[int], world: int, budget: int) -> None:
    batch, tokens = np.random.default_rng(0).permutation(len(lengths)), np.array(lengths)
    by_rank = [shares(batch, tokens, rank, world, budget) for rank in range(world)]
    assert len({len(own) for own in by_rank}) == 1  # all ranks: as many forward passes
    length_of = dict(zip(batch, lengths, strict=True))
    for share in (share for own in by_rank for share in own):
        assert len(share.rows) == 1 or sum(length_of[row] for row in share.rows) <= budget
    weighted = [row for own in by_rank for share in own for row in share.rows[share.weights == 1]]
    assert sorted(weighted) == sorted(batch)


def test_micro_batches_are_about_equally_large() -> None:
    tokens = np.array([500, 300, 160, 150, 110, 100, 90, 80])  # 1,490: filled one after another, 960 and 530
    sizes = [tokens[share.rows].sum() for share in shares(np.arange(8), tokens, 0, 1, 1000)]
    assert len(sizes) == 2
    assert max(sizes) < 800


def config(**fields: object) -> TrainConfig:
    return TrainConfig(policy="x", **fields)


def test_steps_cover_the_epochs() -> None:
    assert num_steps(100, config(global_batch=8)) == 13
    assert num_steps(100, config(global_batch=8, epochs=0.5)) == 7
    assert num_steps(100, config(global_batch=8, max_steps=3)) == 3
    assert num_steps(3, config(global_batch=8)) == 1


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("constant", 1, 1), ("linear", 5 / 9, 1 / 9), ("cosine", 0.586824, 0.030154)]
)
def test_schedules(schedule: str, middle: float, last: float) -> None:
    shape = config(lr=1.0, warmup_fraction=0.1, schedule=schedule)
    assert lr_at(1, 10, shape) == 1.0  # one step of warmup
    assert lr_at(6, 10, shape) == pytest.approx(middle, abs=1e-6)
    assert lr_at(10, 10, shape) == pytest.approx(last, abs=1e-5)
    long = config(lr=1.0, warmup_fraction=0.5, schedule=schedule)
    assert [lr_at(step, 8, long) for step in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
    steps = config(lr=1.0, warmup_steps=4, schedule=schedule)
    assert [lr_at(step, 8, steps) for step in range(1, 9)] == [lr_at(step, 8, long) for step in range(1, 9)]
    assert lr_at(3, 3, steps) == 0.75  # a warmup that is longer than the run
    if schedule != "constant":
        ends = config(lr=2.0, warmup_fraction=0.1, schedule=schedule, min_lr_fraction=0.1)
        for step in range(2, 11):  # as cosine_with_min_lr of transformers
            assert lr_at(step, 10, ends) == pytest.approx(2 * (0.1 + 0.9 * lr_at(step, 10, shape)))


@given(st.sampled_from(["linear", "cosine"]), st.integers(0, 20), st.integers(1, 300), st.floats(0, 1))
def test_a_rate_rises_and_then_falls_to_its_least(schedule: str, warmup: int, total: int, least: float) -> None:
    shape = config(lr=1.0, warmup_steps=warmup, schedule=schedule, min_lr_fraction=least)
    rates = [lr_at(step, total, shape) for step in range(1, total + (2 if total > warmup else 1))]
    assert np.all(np.diff(rates[:warmup]) >= 0)
    assert np.all(np.diff(rates[warmup:]) <= 1e-12)
    assert all(rate >= least - 1e-9 for rate in rates[warmup:])
    if total > warmup:
        assert rates[-1] == pytest.approx(least)  # the step that would come next


def test_fields_of_the_rate_that_contradict_each_other() -> None:
    for fields, message in (
        ({"warmup_steps": 3, "warmup_fraction": 0.1}, "leave one out"),
        ({"warmup_fraction": None}, "warmup_fraction: 0 is no warmup"),
        ({"schedule": "constant", "min_lr_fraction": 0.1}, "constant stays at lr"),
        ({"export": "best"}, "export: best compares evaluations .* eval_steps"),
        ({"patience": 2}, "patience compares evaluations .* eval_steps"),
        ({"patience": 2, "eval_steps": 1, "best_metric": "eval/implicit_kl"}, "give best_is"),
        ({"best_metric": "loss"}, "pattern"),
    ):
        with pytest.raises(ValidationError, match=message):
            config(**fields)
    stated = config(warmup_steps=3)
    assert config(**stated.model_dump(exclude={"policy"})) == stated
    assert config(patience=2, eval_steps=1, best_metric="eval/implicit_kl", best_is="lowest").best_is_highest is False
    for name, highest in (("eval/loss", False), ("eval/x/loss", False), ("eval/x/rewards/accuracies", True)):
        assert config(best_metric=name).best_is_highest is highest
