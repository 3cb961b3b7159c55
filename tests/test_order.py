"""The order of pairs: every epoch whole, a function of the step, in stretches."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.train.pairs.order import Order

sizes = st.integers(1, 40)
counts = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any).map(np.array)


@given(counts=counts, global_batch=sizes, seed=st.integers(0, 5), window=sizes)
def test_an_epoch_has_every_pair_once(counts: np.ndarray, global_batch: int, seed: int, window: int) -> None:
    order, num_pairs = Order(counts, seed, global_batch, window), int(counts.sum())
    steps = range(1, 2 * num_pairs // global_batch + 2)
    stream = np.concatenate([order.batch_at(step) for step in steps])
    assert len(stream) >= num_pairs
    for start in range(0, len(stream) - num_pairs + 1, num_pairs):
        assert sorted(stream[start : start + num_pairs]) == list(range(num_pairs))


@given(counts=counts, global_batch=sizes, window=sizes, steps=st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_the_step_is_the_whole_state(counts: np.ndarray, global_batch: int, window: int, steps: list[int]) -> None:
    used = Order(counts, 3, global_batch, window)
    for step in steps:
        batch = used.batch_at(step)
        assert (batch == Order(counts, 3, global_batch, window).batch_at(step)).all()
        owners = np.searchsorted(np.cumsum(counts), batch, side="right")
        assert set(owners.tolist()) <= set(used.parts_at(step))


def test_seed_and_epoch_decide() -> None:
    counts = np.array([50, 50])
    assert (Order(counts, 3, 8, 100).batch_at(7) != Order(counts, 4, 8, 100).batch_at(7)).any()
    order = Order(np.array([8]), 3, 8, 8)
    assert (order.batch_at(1) != order.batch_at(2)).any()  # another order in the next epoch


def test_a_large_set_is_read_in_stretches() -> None:
    """40 parts of 25 pairs, windows of 100: a step needs the 4 parts of its window, and the next 4 ahead."""
    order = Order(np.full(40, 25), 0, 20, 100)
    for step in range(1, 101):
        assert len(set(order.batch_at(step) // 25)) <= 4
        assert len(order.parts_at(step)) <= 8
    assert sorted({part for step in range(1, 51) for part in set(order.batch_at(step) // 25)}) == list(range(40))


def test_a_set_of_one_window_is_shuffled_as_a_whole_however_it_is_cut() -> None:
    one, many = Order(np.array([60]), 1, 10, 60), Order(np.full(6, 10), 1, 10, 60)
    assert all((one.batch_at(step) == many.batch_at(step)).all() for step in range(1, 7))
