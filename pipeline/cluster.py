"""The only place that knows how Ray is reached: connect, runtime environment, job submission."""

import logging
import math
import os
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.recipe.sections import Cluster
from stages import storage
from stages.errors import RecipeError

CODE = Path(__file__).parents[1]  # the checkout: it holds pipeline/ and stages/
_NOT_CODE = ["/.git/", "/.venv/", "/.models/", "/runs/", "/tests/", "/infra/"]
_log = logging.getLogger("raydpo")


@contextmanager
def connected(cluster: Cluster, verbose: bool) -> Iterator[None]:
    """Connect to the cluster of `cluster.address` or RAY_ADDRESS (Ray's own variable, which every job has), or start
    one on this machine for as long as the context lasts.
    """
    import ray

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
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # inside a submitted job, which has brought the code already
        return {"env_vars": env_vars}
    return {"working_dir": str(CODE), "excludes": _NOT_CODE, "env_vars": env_vars}


def submit(cluster: Cluster, arguments: list[str], submission_id: str, metadata: dict[str, str]) -> str:
    """Send `PYTHON -m pipeline ARGUMENTS` to the cluster as a Ray job; return its id. A live job is not sent twice.

    A cluster that is starting is asked again for `dashboard_seconds`. Raises RecipeError.
    """
    field = "work" if storage.is_remote(cluster.root) else "root"
    if not Path(getattr(cluster, field)).is_absolute():
        raise RecipeError(
            f"cluster.{field} {getattr(cluster, field)} is relative: in a job that is a folder which ends with the job"
        )
    if not cluster.dashboard:
        raise RecipeError('the cluster file names no dashboard to submit to; add dashboard: "http://HOST:8265"')
    job = {
        "entrypoint": shlex.join([cluster.python, "-m", "pipeline", *arguments]),
        "submission_id": submission_id,
        "runtime_env": {"working_dir": str(CODE), "excludes": _NOT_CODE},
        "metadata": metadata,
    }
    deadline, told = time.monotonic() + cluster.dashboard_seconds, False
    while True:
        try:
            return _send(cluster.dashboard, job)
        except (OSError, RuntimeError) as error:
            if not (nothing_there := isinstance(error, ConnectionError)) and not _is_fault_of_server(error):
                raise
            if time.monotonic() >= deadline and nothing_there:
                raise RecipeError(f"no Ray dashboard answers at {cluster.dashboard}: {error}") from error
            if time.monotonic() >= deadline:
                raise RecipeError(f"the cluster of {cluster.dashboard} takes no job: {error}{_why(error)}") from error
            if not told:
                _log.warning(
                    "%s is not ready (%s): asking again for %g s", cluster.dashboard, error, cluster.dashboard_seconds
                )
            told = True
            time.sleep(1)


def _send(dashboard: str, job: dict[str, Any]) -> str:
    """The whole of it, so that a job which was taken though the answer said otherwise is found the next time."""
    import requests
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(dashboard)
        before = {each.submission_id: each.status for each in client.list_jobs()}
        if before.get(job["submission_id"]) in (JobStatus.PENDING, JobStatus.RUNNING):
            return job["submission_id"]
        if job["submission_id"] in before:
            client.delete_job(job["submission_id"])  # it has ended; the same work goes on under the same id
        return client.submit_job(**job)
    except requests.ConnectionError as error:  # Ray's client says so only of its first question
        raise ConnectionError(str(error)) from error


def _is_fault_of_server(error: Exception) -> bool:
    """A status of 5xx, which Ray's client tells in two ways."""
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code >= 500
    return "Request failed with status code 5" in str(error)


def _why(error: Exception) -> str:
    if "No available agent" not in str(error):
        return ""
    return (
        " Its head node has no job agent (dashboard_agent.log there says why). Of two Ray clusters on one machine the "
        "second has none, unless it is started with another port: ray start --head --dashboard-agent-listen-port PORT"
    )
