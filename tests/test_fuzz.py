"""A few hundred of the mutated files that `python -m tests.fuzz` reads by the thousand."""

import random
from collections import Counter
from functools import cache
from pathlib import Path

import fuzz
import fuzz_rows
import pytest
from chat_family import Family
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st


@cache
def family() -> Family:
    return Family("chatml")


@pytest.mark.parametrize("seed", range(3))
def test_mutated_files_end_in_rows_or_a_message(seed: int, tmp_path: Path) -> None:
    found = fuzz.run(120, seed, tmp_path)
    assert found.total() == 120
    assert min(found["rows"], found["refused"]) > 20  # neither is all that is tried


@pytest.mark.parametrize("shape", fuzz_rows.SHAPES)
def test_mutated_rows_end_in_tables(shape: str) -> None:
    drawn = random.Random(shape)
    found = sum((fuzz_rows.check_tables(family(), shape, 50, drawn) for _ in range(3)), Counter[str]())
    assert found["pairs"] > 10
    assert found.total() - found["pairs"] > 10


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example("a.json", b"[")
@example("a.jsonl", b"\xef\xbb\xbf")
@example("a.jsonl.gz", b"\x1f\x8b")
@example("a.jsonl.zst", b"\x28\xb5\x2f\xfd")
@example("a.parquet", b"PAR1PAR1")
@example("a.arrow", b"ARROW1\0\0ARROW1")
@given(st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.arrow", "a.jsonl.gz"]), st.binary())
def test_any_bytes_end_in_rows_or_a_message(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    fuzz.read(tmp_path / name, random.Random(len(data)))
