"""How many steps there are, and who computes which pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
