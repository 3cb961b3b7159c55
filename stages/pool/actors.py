"""A Ray Data pool of actors that work through parts, and what is told of it."""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import ray

from stages.config import Elastic, Labels, fewest, most
from stages.cpu_environment import CPU_ENVIRONMENT
from stages.errors import out_of_ray
from stages.progress import Progress


class Pool(Protocol):
    """Resources of a stage."""

    @property
    def actors(self) -> int | Elastic: ...

    @property
    def cpus_per_actor(self) -> int: ...

    @property
    def gpus_per_actor(self) -> int: ...

    @property
    def labels(self) -> Labels: ...


def reports(todo: Sequence[str], worker: type, job: Any, pool: Pool) -> Iterator[dict[str, Any]]:
    """What calls of `worker(job=job)` on a one-row table `part` return, as they come, the first ones begun first."""
    if not todo:
        return
    # Two parts at an actor, so that the next one is read when the engine is done with this one; and no more, so that at
    # the end none waits at one actor while another is idle. Nor at the start: the first actor there takes what it may.
    at_once = min(2, -(-len(todo) // most(pool.actors)))
    rows = (
        ray.data.from_items([{"part": part} for part in todo], override_num_blocks=len(todo))
        .map_batches(
            worker,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pool.cpus_per_actor,
            num_gpus=pool.gpus_per_actor,
            label_selector=pool.labels or None,
            runtime_env={} if pool.gpus_per_actor else {"env_vars": CPU_ENVIRONMENT},
            compute=ray.data.ActorPoolStrategy(
                min_size=min(fewest(pool.actors), len(todo)),
                max_size=min(most(pool.actors), len(todo)),
                max_tasks_in_flight_per_actor=at_once,
                max_concurrent_calls_per_actor=at_once,
                enable_true_multi_threading=True,
            ),
            fn_constructor_kwargs={"job": job},
        )
        .iter_rows()
    )
    with out_of_ray():
        yield from rows


def follow(
    found: Iterator[dict[str, Any]],
    total: int,
    todo: int,
    actors: int | Elastic,
    rates: Sequence[str],
    progress: Progress,
) -> None:
    """Tell of reports as they come: of `rates`, rows and maybe tokens, so many a second; of `unscored` how many."""
    progress.start(total, total - todo, "parts")
    # Sums, and no list of reports: of a hundred thousand parts each one would be gone through a hundred thousand times.
    sums: Counter[str] = Counter()
    at_work: set[str] = set()
    pool = min(most(actors), todo)
    lately: deque[str] = deque(maxlen=4 * pool)
    began = time.perf_counter()
    for number, report in enumerate(found, 1):
        rows, *tokens = (report[name] for name in rates)
        progress.made(rows, sum(tokens), report["seconds"], report["unscored"])
        sums.update({name: report[name] for name in (*rates, "unscored")})
        at_work.add(report["actor"])
        lately.append(report["actor"])
        seconds = time.perf_counter() - began
        progress.advance(
            total - todo + number,
            **{f"{name}/s": sums[name] / seconds for name in rates},
            **{
                "actors": len(set(lately)),
                "died": max(0, len(at_work) - pool),
                "unscored": sums["unscored"],
                **{key: report[key] for key in ("peak_memory_gb",) if key in report},
            },
        )
