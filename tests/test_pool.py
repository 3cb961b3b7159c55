"""How a pool of actors shares its parts."""

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.pool.actors import reports
from stages.sample.config import SampleResources


def test_no_actor_waits_while_another_has_two_parts(tmp_path: Path, ray_cluster: str) -> None:  # noqa: ARG001
    """One is there long before the other, and may take no more than its share."""

    class Worker:  # within the test, so that Ray sends it along: no worker can import tests
        def __init__(self, job: Path):
            try:
                (job / "first").touch(exist_ok=False)
            except FileExistsError:
                time.sleep(2)
                (job / "second").touch()
            self.second = job / "second"

        def __call__(self, batch: pa.Table) -> pa.Table:
            deadline = time.monotonic() + 60
            while not self.second.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            return pa.Table.from_pylist([{"part": batch["part"][0].as_py(), "actor": os.getpid()}])

    found: list[dict[str, Any]] = list(reports(["a", "b"], Worker, tmp_path, SampleResources(actors=2)))
    assert sorted(each["part"] for each in found) == ["a", "b"]
    assert len({each["actor"] for each in found}) == 2
