"""Who makes an artifact, known by processes of one machine and of others."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
from conftest import ROOT

from pipeline.lease import Lease, holder
from stages.errors import ContractError

HOLD = """
import sys, time
from pathlib import Path
from pipeline.lease import Lease
lease = Lease(Path(sys.argv[1]), 1.5)
lease.acquire(print)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
lease.release()
"""


def process(path: Path, seconds: float, *above: str) -> subprocess.Popen:
    command = [*above, sys.executable, "-c", HOLD, str(path), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "score-0123456789ab.json"


def test_one_holds_it_and_the_others_wait_for_their_turn(path: Path) -> None:
    """However many come at once, no two hold it at the same time."""
    inside, most = [], []

    def work(number: int) -> None:
        lease = Lease(path)
        lease.acquire(lambda _: None)
        inside.append(number)
        most.append(len(inside))
        time.sleep(0.02)
        inside.remove(number)
        lease.release()

    threads = [Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 12
    assert list(path.parent.iterdir()) == []


def test_who_waits_is_told_for_whom_and_goes_on_when_that_one_ends(path: Path) -> None:
    other, told = process(path, 1), []
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    lease = Lease(path)
    lease.acquire(told.append)
    assert len(told) == 1
    assert told[0].startswith(f"process {other.pid} on ")
    other.wait(30)
    lease.check()
    lease.release()
    assert holder(path) is None


def test_a_killed_holder_of_this_machine_frees_it_at_once(path: Path) -> None:
    other = process(path, 600)
    assert other.stdout is not None
    other.stdout.readline()
    assert holder(path) is not None
    other.kill()
    other.wait()
    assert holder(path) is None
    began = time.monotonic()
    Lease(path, 600).acquire(lambda _: None)  # long before its silence would tell
    assert time.monotonic() - began < 60


def test_a_holder_of_another_node_is_dead_when_it_is_silent(path: Path) -> None:
    """Process numbers of another node, or container, say nothing here: one that has such a number may live."""
    lease = Lease(path, 1.5)
    lease.acquire(lambda _: None)
    content = json.loads(path.read_text()) | {"world": "another", "who": "process 1 on far since noon"}
    path.write_text(json.dumps(content))
    waits, taken = Lease(path, 1.5), []
    thread = Thread(target=lambda: (waits.acquire(taken.append), taken.append("held")))
    thread.start()
    time.sleep(4)  # it beats all the while
    assert len(taken) == 1
    assert "on far since" in taken[0]
    lease._ended.set()  # as if its node were gone
    thread.join(30)
    assert taken[1:] == ["held"]
    with pytest.raises(ContractError, match=r"score-0123456789ab was taken over by process \d+ on .* no sign of life"):
        lease.check()
    lease.release()  # of what it holds no more
    waits.check()
    waits.release()


def test_who_looks_but_once_takes_a_holder_of_another_node_for_dead_after_ten_minutes(path: Path) -> None:
    lease = Lease(path, 600, told={"artifacts": ["a"]})
    assert lease.take()
    ours = json.loads(path.read_text())
    for world, minutes, lives in ((ours["world"], 60, True), ("another", 9, True), ("another", 11, False)):
        path.write_text(json.dumps(ours | {"world": world}))
        os.utime(path, (0, time.time() - 60 * minutes))
        assert (holder(path) is not None) == lives
    path.write_text(json.dumps(ours))
    assert holder(path)["artifacts"] == ["a"]
    lease.release()
    assert list(path.parent.iterdir()) == []


def test_a_holder_in_another_namespace_of_processes(path: Path) -> None:
    """A container: its process 1 is not ours."""
    apart = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make a namespace")
    other, told = process(path, 3, *apart), []
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert json.loads(path.read_text())["process"] < 10
    Lease(path, 30).acquire(told.append)
    assert len(told) == 1
    assert other.wait(30) == 0  # it was waited for


def test_of_many_who_see_a_dead_holder_one_takes_over(path: Path) -> None:
    Lease(path).acquire(lambda _: None)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "0"}))  # a process that had its number before
    test_one_holds_it_and_the_others_wait_for_their_turn(path)
