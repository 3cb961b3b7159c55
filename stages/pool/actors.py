"""A Ray Data pool of actors that work through parts, and what is told of it."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import ray

from stages.cpu_environment import CPU_ENVIRONMENT
from stages.errors import out_of_ray
from stages.progress import Progress


class Pool(Protocol):
    """Resources of a stage."""

    @property
    def actors(self) -> int: ...

    @property
    def cpus_per_actor(self) -> int: ...

    @property
    def gpus_per_actor(self) -> int: ...


def reports(todo: Sequence[str], worker: type, job: Any, pool: Pool) -> Iterator[dict[str, Any]]:
    """What calls of `worker(job=job)` on a one-row table `part` return, as they come, the first ones begun first."""
    if not todo:
        return
    rows = (
        ray.data.from_items([{"part": part} for part in todo], override_num_blocks=len(todo))
        .map_batches(
            worker,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pool.cpus_per_actor,
            num_gpus=pool.gpus_per_actor,
            runtime_env={} if pool.gpus_per_actor else {"env_vars": CPU_ENVIRONMENT},
            # Two parts at an actor, so that the next one is read when the engine is done with this one; and no more, so
            # that at the end none waits at one actor while another is idle.
            compute=ray.data.ActorPoolStrategy(
                size=min(pool.actors, len(todo)),
                max_tasks_in_flight_per_actor=2,
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
            ),
            fn_constructor_kwargs={"job": job},
        )
        .iter_rows()
    )
    with out_of_ray():
        yield from rows


def follow(
    found: Iterator[dict[str, Any]], total: int, todo: int, actors: int, rates: Sequence[str], progress: Progress
) -> None:
    """Tell of reports as they come: of those named in `rates` so many a second, of `unscored` how many in all."""
    progress.start(total, total - todo, "parts")
    seen: list[dict[str, Any]] = []
    began = time.perf_counter()
    for report in found:
        seen.append(report)
        seconds = time.perf_counter() - began
        at_work = {each["actor"] for each in seen}
        pool = min(actors, todo)
        progress.advance(
            total - todo + len(seen),
            **{f"{name}/s": sum(each[name] for each in seen) / seconds for name in rates},
            **{
                "actors": len({each["actor"] for each in seen[-4 * pool :]}),  # those at work of late
                "died": max(0, len(at_work) - pool),
                "unscored": sum(each["unscored"] for each in seen),
            },
        )
