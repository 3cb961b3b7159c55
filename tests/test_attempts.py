"""The search for poisonous pairs, through any number of deaths on the way."""

import random
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.pool.attempts import DIED, Attempts
from stages.pool.careful import Company


@settings(deadline=None)  # machines are noisy
@given(
    rows=st.integers(1, 40), poisons=st.sets(st.integers(0, 39), max_size=3), seed=st.integers(0, 9)
)  # fmt: skip
def test_the_poisonous_pairs_are_found_and_no_others(rows: int, poisons: set[int], seed: int) -> None:
    poisons &= set(range(rows))
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        attempts = Attempts(Path(folder) / "part", limit=3)
        deaths, finished = 1, False
        while not finished:
            for tried in attempts.search(range(rows)):
                # Once in a while the process is killed for no fault of the pairs. A pair alone stands that twice.
                killed = deaths and chance.random() < 0.2
                deaths -= bool(killed)
                try:
                    with attempts.attempt(attempts.name(tried)):
                        if poisons & set(tried):
                            raise ValueError(f"no such token in row {min(poisons & set(tried))}")
                        if killed:
                            raise KeyboardInterrupt  # as SIGKILL: nothing is said
                except (ValueError, KeyboardInterrupt):
                    break
                attempts.mark_good(tried)
            else:
                finished = True
        assert attempts.poisonous(range(rows)) == {
            row: f"ValueError: no such token in row {row}" for row in sorted(poisons)
        }


def test_a_part_that_has_failed_works_alone(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "part", limit=3)
    assert attempts.clean
    with pytest.raises(ValueError, match="no"), attempts.attempt("whole"):
        raise ValueError("no")
    assert not attempts.clean
    company, at_work, seen = Company(), Counter[bool](), []

    def work(alone: bool) -> None:
        with company.joined(alone):
            at_work[alone] += 1
            time.sleep(0.01)
            seen.append(dict(at_work))
            at_work[alone] -= 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, [False, False, True, False, True, False, False, True] * 3))
    assert len(seen) == 24
    assert all(not each.get(True) or (each[True], each.get(False, 0)) == (1, 0) for each in seen)
    assert any(each.get(False, 0) > 1 for each in seen)


def test_a_death_without_a_word_is_named(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "part", limit=2)
    for _ in range(2):
        try:
            with attempts.attempt("0-1"):
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
    assert attempts.poisonous(range(1)) == {0: DIED}
    attempts.forget()
    assert not attempts.failed("0-1")
