"""Nodes of a Ray cluster on one machine: each has a network, process numbers and a name of its own, and only files are
shared, as over NFS.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests
from conftest import ROOT

NET = "10.231.77"
HOST = f"{NET}.1"  # this machine, for the nodes
_BRIDGE = "raydpo-nodes"


class Nodes:
    """`HOST` and all nodes reach each other. The first one is the head, which has no CPUs for work."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self._folder, self._environment = folder, os.environ | environment
        self._started = 0
        self.living: dict[str, subprocess.Popen] = {}  # by name
        self.address, self.dashboard = f"{NET}.11:6379", f"http://{NET}.11:8265"

    def start(self) -> None:
        self.add(0, "--head", "--port=6379", "--dashboard-host=0.0.0.0", "--dashboard-port=8265")

    def add(self, num_cpus: int, *options: str) -> str:
        """Start one, and wait until the cluster knows it."""
        name, address = f"raydpo{self._started}", f"{NET}.{11 + self._started}"
        self._started += 1
        for command in (
            f"netns add {name}",
            f"link add {name}-host type veth peer name eth0 netns {name}",
            f"link set {name}-host master {_BRIDGE} up",
            f"-n {name} addr add {address}/24 dev eth0",
            f"-n {name} link set eth0 up",
            f"-n {name} link set lo up",
        ):
            _ip(*command.split())
        where = options or (f"--address={self.address}",)
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--node-ip-address={address}", *where]
        ray += [f"--num-cpus={num_cpus}", f"--object-store-memory={100 << 20}", "--disable-usage-stats"]
        ray += [f"--temp-dir={self._folder}"] if options else ["--labels=kind=work"]
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
        # Of Ray's files each has its own under the same name: of one, a node would clear away what others use.
        own = self._folder.with_name(f"{self._folder.name}-{name}")
        own.mkdir()
        start = f'hostname {name} && mount --bind {own} {self._folder} && exec "$@"'
        command = ["ip", "netns", "exec", name, *apart, "sh", "-c", start, "sh", *ray]
        with (self._folder / f"{name}.log").open("w") as log:
            self.living[name] = subprocess.Popen(command, env=self._environment, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while not self._is_known(address):
            assert self.living[name].poll() is None, (self._folder / f"{name}.log").read_text()
            assert time.monotonic() < deadline, (self._folder / f"{name}.log").read_text()
            time.sleep(0.2)
        return name

    def popen(self, name: str, command: Sequence[str], **options: object) -> subprocess.Popen:
        """A process of that node."""
        inside = next(pid for pid in self._processes(name) if _is_first(pid))
        enter = ["nsenter", f"--target={inside}", "--net", "--pid", "--mount", "--uts", f"--wd={ROOT}"]
        return subprocess.Popen([*enter, *command], env=self._environment, **options)  # type: ignore[call-overload]

    def actors(self, kind: str) -> list[int]:
        """Processes of those on any node whose class is called so, or so and more."""
        every = [pid for name in self.living for pid in self._processes(name)]
        return [pid for pid in every if kind in _title(pid)]

    def lose(self, name: str) -> None:
        """As when its power fails: nobody is told, and no connection is closed."""
        _ip("link", "set", f"{name}-host", "down")
        for pid in self._processes(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.living.pop(name).wait(30)

    def clear(self) -> None:
        for name in list(self.living):
            self.lose(name)
        for own in self._folder.parent.glob(f"{self._folder.name}*"):
            shutil.rmtree(own, ignore_errors=True)

    def _is_known(self, address: str) -> bool:
        with suppress(requests.RequestException):
            nodes = requests.get(f"http://{NET}.11:8265/nodes?view=summary", timeout=5).json()["data"]["summary"]
            return any(node.get("ip") == address and node.get("raylet", {}).get("state") == "ALIVE" for node in nodes)
        return False

    def _processes(self, name: str) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", name).split()]


@contextmanager
def nodes(folder: Path, environment: dict[str, str]) -> Iterator[Nodes]:
    """A cluster of a head alone. `folder`: of Ray's files; its name is short, as those of sockets have to be."""
    if not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        pytest.skip("needs ip, unshare and nsenter")
    _clear()
    if subprocess.run(["ip", "link", "add", _BRIDGE, "type", "bridge"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a network")
    try:
        _ip("addr", "add", f"{HOST}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        made = Nodes(folder, environment)
        try:
            made.start()
            yield made
        finally:
            made.clear()
    finally:
        _clear()


def _clear() -> None:
    """What an earlier one has left, too."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for name in (line.split()[0] for line in listed.splitlines()):
        if name.startswith("raydpo"):
            _ip("netns", "delete", name)
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=False).stdout
    for name in (line.split()[1].partition("@")[0].rstrip(":") for line in links.splitlines()):
        if name.startswith("raydpo"):  # one of a namespace that is gone goes a moment later by itself
            subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has ended
        return ""


def _is_first(pid: int) -> bool:
    """In its namespace."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1] == "1"


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout
