"""Ray jobs: one a stage, each after the one before it. Only their ids are remembered, and they follow from the work."""

import logging
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.cluster.connection import prefer_named
from pipeline.plan import Identity
from pipeline.recipe.sections import Cluster
from stages.errors import MissingArtifact, RecipeError
from stages.storage.place import is_remote

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_log = logging.getLogger("raydpo")
_POLL = 1.0  # seconds between two looks at a job
_PATIENCE = 300.0  # seconds in which a busy head node need not answer a job that waits


class Job(NamedTuple):
    id: str
    arguments: list[str]  # of `python -m pipeline`
    metadata: dict[str, str]


def id_of(identity: Identity) -> str:
    """The same work has the same id."""
    return f"{identity.name}-{identity.fingerprint[:12]}"


def jobs_of(identities: Sequence[Identity], recipe: Path, options: Iterable[str]) -> list[Job]:
    """One for each of these stages, in order; `options` are of all of them."""
    found: list[Job] = []
    for identity in identities:
        arguments = ["run", str(recipe), "--only", identity.name, *options]
        if found:
            arguments += ["--after", found[-1].id]
        metadata = {"stage": identity.name, "fingerprint": identity.fingerprint}
        found.append(Job(id_of(identity), arguments, metadata))
    return found


def submit(cluster: Cluster, jobs: Sequence[Job], folder: Path) -> None:
    """Send them, with `folder` as their working directory. A live job is not sent twice.

    A cluster that is starting is asked again for `dashboard_seconds`. Raises RecipeError.
    """
    field = "work" if is_remote(cluster.root) else "root"
    if not Path(getattr(cluster, field)).is_absolute():
        raise RecipeError(
            f"cluster.{field} {getattr(cluster, field)} is relative: in a job that is a folder which ends with the job"
        )
    asked = [
        {
            "entrypoint": shlex.join([cluster.python, "-m", "pipeline", *job.arguments]),
            "submission_id": job.id,
            "runtime_env": {"working_dir": str(folder)},
            "metadata": job.metadata,
        }
        for job in jobs
    ]
    deadline, told = time.monotonic() + cluster.dashboard_seconds, False
    while True:
        try:
            return _send(_named(cluster), asked)
        except (OSError, RuntimeError) as error:
            if not (nothing_there := isinstance(error, ConnectionError)) and not _is_fault_of_server(error):
                raise
            if time.monotonic() >= deadline and nothing_there:
                raise _silent(cluster, error) from error
            if time.monotonic() >= deadline:
                raise RecipeError(f"the cluster of {cluster.dashboard} takes no job: {error}{_why(error)}") from error
            if not told:
                _log.warning(
                    "%s is not ready (%s): asking again for %g s", cluster.dashboard, error, cluster.dashboard_seconds
                )
            told = True
            time.sleep(1)


def follow(cluster: Cluster, job: str, write: Callable[[str], None]) -> int:
    """Pass on what a job prints, until it ends; its exit code, or 1 where it had none (it was stopped, or lost).

    It is asked again and again, not listened to: that goes through any proxy, and past a dashboard that has faults for
    less than `dashboard_seconds`. Raises RecipeError past more.
    """
    printed, answered = 0, time.monotonic()
    while True:
        try:
            client = _client(cluster)
            info = client.get_job_info(job)  # before the log, so that the log of a job that has ended is whole
            log = client.get_job_logs(job)
        except (OSError, RuntimeError, RecipeError) as error:
            if time.monotonic() - answered > cluster.dashboard_seconds:
                raise _silent(cluster, error) from error
            time.sleep(_POLL)
            continue
        answered = time.monotonic()
        write(log[printed:])
        printed = max(printed, len(log))
        if not info.status.is_terminal():
            time.sleep(_POLL)
        elif info.driver_exit_code is not None:
            return int(info.driver_exit_code)
        else:
            write(f"{job}: {info.status}: {info.message or ''}\n")
            return 0 if info.status == "SUCCEEDED" else 1


def statuses(cluster: Cluster) -> dict[str, str]:
    """Of all jobs that the cluster remembers, by id. Raises RecipeError where none answers."""
    return {each.submission_id: str(each.status) for each in _client(cluster).list_jobs() if each.submission_id}


def cancel(cluster: Cluster, jobs: Iterable[str]) -> list[str]:
    """Stop those that live, the last one first, so that none begins because the one before it has ended."""
    client, known = _client(cluster), statuses(cluster)
    live = [job for job in jobs if known.get(job) in ("PENDING", "RUNNING")]
    return [job for job in reversed(live) if client.stop_job(job)]


def wait(cluster: Cluster, job: str) -> None:
    """Within a job: until that other one of the same cluster has ended. Raises MissingArtifact where it has failed."""
    from ray.job_submission import JobSubmissionClient

    prefer_named(cluster)
    answered = time.monotonic()
    while True:
        try:
            known = JobSubmissionClient().list_jobs()  # of the cluster that this job runs on: Ray says which
        except (OSError, RuntimeError):
            if time.monotonic() - answered > _PATIENCE:
                raise
            time.sleep(_POLL)
            continue
        answered = time.monotonic()
        status = {each.submission_id: each.status for each in known}.get(job)
        if status is None or status == "SUCCEEDED":  # one that nobody remembers: what it made is there, or is missed
            return
        if status.is_terminal():
            raise MissingArtifact(f"{job} is {status}, and this stage needs what it makes. See: ray job logs {job}")
        time.sleep(_POLL)


def _named(cluster: Cluster) -> str:
    if not cluster.dashboard:
        raise RecipeError('the cluster file names no dashboard to submit to; add dashboard: "http://HOST:8265"')
    return cluster.dashboard


def _client(cluster: Cluster) -> "JobSubmissionClient":
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(_named(cluster))
    except ConnectionError as error:
        raise _silent(cluster, error) from error


def _silent(cluster: Cluster, error: Exception) -> RecipeError:
    return RecipeError(f"no Ray dashboard answers at {cluster.dashboard}: {error}")


def _send(dashboard: str, jobs: list[dict[str, Any]]) -> None:
    """The whole of it, so that a job which was taken though the answer said otherwise is found the next time."""
    import requests
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(dashboard)
        before = {each.submission_id: each.status for each in client.list_jobs()}
        for job in jobs:
            if before.get(job["submission_id"]) in (JobStatus.PENDING, JobStatus.RUNNING):
                continue
            if job["submission_id"] in before:
                client.delete_job(job["submission_id"])  # it has ended; the same work goes on under the same id
            client.submit_job(**job)
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
