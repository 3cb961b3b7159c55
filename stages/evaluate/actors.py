"""Actors that hold a model each, and take one piece of work after another."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ray

from stages.cpu_environment import CPU_ENVIRONMENT
from stages.errors import out_of_ray
from stages.evaluate.config import EvaluateResources


class Pool(NamedTuple):
    """`make` gives a callable, in the actor's process; each of `todo` are the arguments of a call. An actor has so many
    calls `at_once`.
    """

    make: Callable[[], Callable[..., Any]]
    todo: Sequence[tuple[Any, ...]]
    at_once: int = 1


class _Actor:
    def __init__(self, make: Callable[[], Callable[..., Any]]):
        self._call = make()

    def call(self, *arguments: Any) -> Any:
        return self._call(*arguments)


def worked(pools: Sequence[Pool], resources: EvaluateResources) -> Iterator[Any]:
    """What the calls return, as they are done. Pools work side by side where there is room, else one after another.

    An actor that dies is started again, and its call with it: calls may be made twice.
    """
    actor = ray.remote(
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        label_selector=resources.labels or None,
        runtime_env={} if resources.gpus_per_actor else {"env_vars": CPU_ENVIRONMENT},
        max_restarts=resources.restarts,
        max_task_retries=resources.restarts,
    )(_Actor)
    left = [deque(pool.todo) for pool in pools]
    busy: dict[Any, tuple[int, Any]] = {}
    try:
        for number, pool in enumerate(pools):
            several = actor.options(max_concurrency=pool.at_once)
            actors = [several.remote(pool.make) for _ in range(min(resources.actors, len(pool.todo)))]
            for one in actors * pool.at_once:
                if left[number]:
                    busy[one.call.remote(*left[number].popleft())] = number, one
        while busy:
            (done,), _ = ray.wait(list(busy), num_returns=1)
            number, one = busy.pop(done)
            with out_of_ray():
                result = ray.get(done)
            if left[number]:
                busy[one.call.remote(*left[number].popleft())] = number, one
            elif all(other is not one for _, other in busy.values()):
                ray.kill(one)
            yield result
    finally:
        for _, one in busy.values():
            ray.kill(one)
