"""How Ray is reached: connect, and what its workers are given. Jobs are sent by jobs.py."""

import logging
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.cluster.room import Node, check_fits, told
from pipeline.graph import STAGES
from pipeline.recipe.sections import Cluster
from stages.errors import RecipeError

_log = logging.getLogger("raydpo")
CODE = Path(__file__).parents[2]  # the checkout: it holds pipeline/ and stages/
# As of git: nothing but the folder itself and these two. So no file beside the code is sent to workers, however large.
_CODE_ALONE = ["/*", "!/.", "!/pipeline", "!/stages", "__pycache__"]


@contextmanager
def connected(cluster: Cluster, verbose: bool, stages: Collection[str] = tuple(STAGES)) -> Iterator[None]:
    """Connect to the cluster of `cluster.address` or RAY_ADDRESS (Ray's own variable, which every job has), or start
    one on this machine for as long as the context lasts.

    `stages`: what it is for. Raises RecipeError where they do not fit on one that is started; of another, that may
    grow, what would wait is logged.
    """
    import ray

    prefer_named(cluster)
    # "local" starts one. Without an address Ray would join whatever cluster this machine already runs.
    address = cluster.address or (None if "RAY_ADDRESS" in os.environ else "local")
    try:
        _check_answers(address)
        ray.init(
            address=address,
            runtime_env=runtime_env(cluster),
            log_to_driver=True,
            # With its dashboard: without one Ray Train asks any other cluster on the machine whether its controller
            # lives, hears no, and stops the run.
            include_dashboard=True if address == "local" else None,
            configure_logging=True,
            logging_level="info" if verbose else "warning",
        )
    except OSError as error:
        raise RecipeError(f"no Ray cluster answers at cluster.address {cluster.address}: {error}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the pipeline draws its own
    context.raise_original_map_exception = True  # so that a worker's error reaches the user as itself
    try:
        if address == "local":
            check_fits(cluster, stages, Node.of_ray(ray.cluster_resources(), {}))
        else:
            nodes = [Node.of_ray(each["Resources"], each["Labels"]) for each in ray.nodes() if each["Alive"]]
            for line in told(cluster, stages, nodes):
                if line.startswith("Warning: "):
                    _log.warning(line.removeprefix("Warning: "))
        yield
    finally:
        ray.shutdown()


def prefer_named(cluster: Cluster) -> None:
    """Within a job, let Ray take the address that the cluster file names, if it names one, before its own variable's.

    Ray tells a job that its cluster is the one that was started last on the machine, which is another where it has two.
    """
    if _in_job() and cluster.address not in (None, "auto"):
        os.environ["RAY_ADDRESS"] = cluster.address


def _check_answers(address: str | None) -> None:
    """Ray itself tries for minutes. "auto" and "local" name no host to try."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def runtime_env(cluster: Cluster) -> dict[str, Any]:
    env_vars = {"TOKENIZERS_PARALLELISM": "false"} | cluster.env_vars
    if _in_job():  # which has brought the code already
        return {"env_vars": env_vars}
    return {"working_dir": str(CODE), "excludes": _CODE_ALONE, "env_vars": env_vars}


def _in_job() -> bool:
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
