"""How Ray is reached: connect, and what its workers are given. Jobs are sent by jobs.py."""

import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.recipe.sections import Cluster
from stages.errors import RecipeError

CODE = Path(__file__).parents[2]  # the checkout: it holds pipeline/ and stages/
# As of git: nothing but the folder itself and these two. So no file beside the code is sent to workers, however large.
_CODE_ALONE = ["/*", "!/.", "!/pipeline", "!/stages", "__pycache__"]


@contextmanager
def connected(cluster: Cluster, verbose: bool) -> Iterator[None]:
    """Connect to the cluster of `cluster.address` or RAY_ADDRESS (Ray's own variable, which every job has), or start
    one on this machine for as long as the context lasts.
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
            check_fits(cluster, {"CPU": 0, "GPU": 0} | ray.cluster_resources())
        yield
    finally:
        ray.shutdown()


def prefer_named(cluster: Cluster) -> None:
    """Within a job, let Ray take the address that the cluster file names, if it names one, before its own variable's.

    Ray tells a job that its cluster is the one that was started last on the machine, which is another where it has two.
    """
    if _in_job() and cluster.address not in (None, "auto"):
        os.environ["RAY_ADDRESS"] = cluster.address


def check_fits(cluster: Cluster, have: dict[str, float]) -> None:
    """On a machine that cannot grow, a stage that wants more than there is would wait for ever.

    Raises RecipeError. What `have` does not name is not checked.
    """
    for field, count, resources in (
        ("score.actors", cluster.score.actors, (cluster.score.cpus_per_actor, cluster.score.gpus_per_actor)),
        ("train.workers", cluster.train.fewest_workers, (cluster.train.cpus_per_worker, cluster.train.gpus_per_worker)),
        (
            "evaluate.actors",
            cluster.evaluate.actors,
            (cluster.evaluate.cpus_per_actor, cluster.evaluate.gpus_per_actor),
        ),
    ):
        for kind, each in zip(("CPU", "GPU"), resources, strict=True):
            if count * each > have.get(kind, math.inf):
                if have[kind] >= each:
                    told = f"Lower it: --set cluster.{field}={int(have[kind] // each)}"
                else:
                    per = f"{field.split('.')[0]}.{kind.lower()}s_per_{field.split('.')[1].removesuffix('s')}"
                    told = f"Lower what each takes: --set cluster.{per}={have[kind]:g}; or name another machine's Ray, "
                    told += "by cluster.address"
                raise RecipeError(
                    f"cluster.{field} is {count}, each with {each} {kind}s, and this machine has {have[kind]:g}. {told}"
                )


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
