"""The machine: processors, GPUs, memory, disks, ports, locks."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.cluster.room import Node, check_fits
from pipeline.doctor.finding import Finding
from pipeline.graph import STAGES
from pipeline.recipe.sections import Cluster
from pipeline.store import Store
from stages.errors import ContractError, RecipeError

_SHARED = Path("/dev/shm")
_OBJECT_STORE = 0.3  # of the machine's memory: what Ray takes for its objects
_NCCL = 1e9  # of shared memory, for the ranks of a machine
_FULL = 0.95  # of a disk: from there on Ray refuses to write objects to it
PORTS = {8265: "Ray's dashboard", 6379: "a Ray head", 52365: "the agent that takes jobs"}


def machine(cluster: Cluster) -> Iterator[Finding]:
    """For what the cluster file asks, where it starts Ray here."""
    yield from _gpus()
    count = _count_gpus()
    yield from _processors(cluster, count)
    yield from _shared_memory(count)
    yield from _disks(cluster)
    yield from ports(PORTS)


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        if any(name.startswith("nvidia") for name in os.listdir("/dev")):
            yield Finding(
                "GPUs", "fault", f"there is an NVIDIA device, and torch {torch.__version__} sees none",
                "Install torch for this driver's CUDA: a CPU build, or a driver that is too old, shows none",
            )  # fmt: skip
        else:
            yield Finding("GPUs", "ok", f"none; torch {torch.__version__}")
        return
    for index in range(torch.cuda.device_count()):
        told = torch.cuda.get_device_properties(index)
        size, capability = f"{told.total_memory / 1e9:.0f} GB", f"{told.major}.{told.minor}"
        yield Finding("GPUs", "ok", f"{index}: {told.name}, {size}, capability {capability}")


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _processors(cluster: Cluster, gpus: int) -> Iterator[Finding]:
    import psutil

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    told = f"{cpus} CPUs, {memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB of memory are free"
    if memory.available < 4e9:
        yield Finding("machine", "warning", told, "Models and Ray take some GB: end what else runs here")
    else:
        yield Finding("machine", "ok", told)
    if cluster.address or "RAY_ADDRESS" in os.environ:
        yield Finding(
            "cluster", "ok", f"runs join {cluster.address or os.environ['RAY_ADDRESS']}; its size is not asked"
        )
        return
    try:
        check_fits(cluster, STAGES, Node({"CPU": cpus, "GPU": gpus}))
        yield Finding("cluster", "ok", "all stages fit on this machine")
    except RecipeError as error:
        yield Finding("cluster", "fault", *_split(str(error)))


def _shared_memory(gpus: int) -> Iterator[Finding]:
    import psutil

    if not _SHARED.is_dir():
        yield Finding(
            "shared memory", "warning", f"there is no {_SHARED}", "Ray will use files in /tmp, which is slower"
        )
        return
    free, wanted = shutil.disk_usage(_SHARED).free, _OBJECT_STORE * psutil.virtual_memory().total
    told = f"{free / 1e9:.1f} GB are free in {_SHARED}"
    if gpus > 1 and free < _NCCL:
        yield Finding("shared memory", "fault", f"{told}: ranks of {gpus} GPUs cannot talk through it", _BIGGER)
    elif free < wanted:
        yield Finding(
            "shared memory", "warning", f"{told}, and Ray wants {wanted / 1e9:.1f}: it will use files in /tmp", _BIGGER
        )
    else:
        yield Finding("shared memory", "ok", told)


_BIGGER = "Of a container: docker run --shm-size=8g; of a pod: an emptyDir of medium Memory at /dev/shm"


def _disks(cluster: Cluster) -> Iterator[Finding]:
    """The store, where it is written, and where Ray writes."""
    try:
        store = Store.open(cluster.root, cluster.work)
    except RecipeError as error:
        yield Finding("store", "fault", *_split(str(error)))
        return
    try:
        if (probe := store.lease("doctor", "probe")).take():
            probe.release()
        yield Finding("store", "ok", f"{store.root} can be written, and {store.work} takes links")
    except ContractError as error:
        yield Finding("store", "fault", *_split(str(error)))
    for what, folder in (("disk", store.work), ("disk of Ray", Path(tempfile.gettempdir()))):
        usage = shutil.disk_usage(folder)
        told = f"{usage.free / 1e9:.0f} of {usage.total / 1e9:.0f} GB are free at {folder}"
        used = 1 - usage.free / usage.total
        if usage.free < 1e9:
            yield Finding(what, "fault", told, "Make room: raydpo gc says what nothing needs")
        elif used > _FULL or usage.free < 1e10:
            yield Finding(what, "warning", f"{told}; Ray keeps off a disk that is {_FULL:.0%} full", "Make room")
        else:
            yield Finding(what, "ok", told)


def ports(known: dict[int, str]) -> Iterator[Finding]:
    """`known`: what usually listens there."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        yield Finding("ports", "fault", f"no port of 127.0.0.1 can be had: {error}", "Ray talks through it: allow it")
        return
    taken = [f"{port} ({what})" for port, what in known.items() if not is_free(port)]
    if taken:
        yield Finding(
            "ports", "warning", f"taken: {', '.join(taken)}. A Ray cluster seems to run here",
            "Runs start one of their own beside it, and take other ports; to join it: cluster.address: auto",
        )  # fmt: skip
    else:
        yield Finding("ports", "ok", f"free: {', '.join(map(str, known))}")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _split(message: str) -> tuple[str, str]:
    """What is wrong, and what to do, of one of our messages."""
    told, _, remedy = message.rpartition(". ")
    return (told, remedy) if told else (message, "")
