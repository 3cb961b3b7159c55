"""Whether nodes have room for what stages ask of a cluster."""

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from pipeline.recipe.sections import Cluster
from stages.config import fewest
from stages.errors import RecipeError


class Node(NamedTuple):
    resources: Mapping[str, float]  # "CPU", "GPU"; what is not named is not checked
    labels: Mapping[str, str] = {}

    @classmethod
    def of_ray(cls, resources: Mapping[str, float], labels: Mapping[str, str]) -> "Node":
        """Ray leaves out what a node has none of."""
        return cls({"CPU": 0, "GPU": 0, **resources}, labels)


class Wanted(NamedTuple):
    """What a stage needs at the least: so many actors or workers, each on one node that has the labels."""

    field: str  # of the cluster file, that says how many
    number: int
    each: Mapping[str, float]
    labels: Mapping[str, str]

    def __str__(self) -> str:
        each = " and ".join(f"{number:g} {kind}s" for kind, number in self.each.items() if number)
        labels = ", ".join(f"{key}={value}" for key, value in self.labels.items())
        return f"cluster.{self.field} is {self.number}, each with {each}" + (f" on nodes with {labels}" * bool(labels))


def wanted(cluster: Cluster, stages: Collection[str]) -> Iterator[Wanted]:
    """Of those stages; shard's tasks fit everywhere."""
    for stage in ("sample", "judge", "score", "evaluate"):
        if stage in stages:
            pool = getattr(cluster, stage)
            each = {"CPU": pool.cpus_per_actor, "GPU": pool.gpus_per_actor}
            yield Wanted(f"{stage}.actors", fewest(pool.actors), each, pool.labels)
    if "train" in stages:
        train = cluster.train
        each = {"CPU": train.cpus_per_worker, "GPU": train.gpus_per_worker}
        yield Wanted("train.workers", train.fewest_workers, each, train.labels)


def room(want: Wanted, nodes: Sequence[Node]) -> int:
    """How many of them fit, beside nothing else."""
    return sum(_on(node, want) for node in nodes if want.labels.items() <= node.labels.items())


def _on(node: Node, want: Wanted) -> int:
    counted = [kind for kind, each in want.each.items() if each and kind in node.resources]
    return min((int(node.resources[kind] // want.each[kind]) for kind in counted), default=want.number)


def told(cluster: Cluster, stages: Collection[str], nodes: Sequence[Node]) -> Iterator[str]:
    """A line a stage, of which those that begin with "Warning: " are of stages that would wait."""
    for want in wanted(cluster, stages):
        has = room(want, nodes)
        if has >= want.number:
            yield f"{want}: there is room for {has}"
        else:
            yield f"Warning: {want}: there is room for {has}, and the stage waits until there is more"


def check_fits(cluster: Cluster, stages: Collection[str], machine: Node) -> None:
    """On a machine that cannot grow, a stage that wants more than there is would wait for ever. Raises RecipeError."""
    for want in wanted(cluster, stages):
        if room(want, [machine]) < want.number:
            raise RecipeError(_lacking(want, machine))


def _lacking(want: Wanted, machine: Node) -> str:
    """And what to do about it."""
    stage, unit = want.field.split(".")
    if not want.labels.items() <= machine.labels.items():
        return f"{want}, and this machine has no labels. Leave out cluster.{stage}.labels, or name another's Ray"
    kind = next(kind for kind, each in want.each.items() if want.number * each > machine.resources.get(kind, math.inf))
    has = machine.resources[kind]
    told = f"cluster.{want.field} is {want.number}, each with {want.each[kind]:g} {kind}s, and this machine has {has:g}"
    if has >= want.each[kind]:
        return f"{told}. Lower it: --set cluster.{want.field}={room(want, [machine])}"
    per = f"{stage}.{kind.lower()}s_per_{unit.removesuffix('s')}"
    return (
        f"{told}. Lower what each takes: --set cluster.{per}={has:g}; or name another machine's Ray, by cluster.address"
    )


def described(cluster: Cluster) -> list[Node]:
    """Those that the cluster file says there are."""
    return [
        Node({"CPU": kind.cpus, "GPU": kind.gpus}, kind.labels) for kind in cluster.nodes for _ in range(kind.count)
    ]


def living(cluster: Cluster) -> list[Node]:
    """Those that the running cluster has now, asked of its dashboard. Raises RecipeError where none answers."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    address = cluster.dashboard or cluster.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        raise RecipeError("the cluster file names no cluster to ask: add dashboard or address to it")
    try:
        found = list_nodes(address=address, filters=[("state", "=", "ALIVE")], limit=10_000)
    except (RayStateApiException, OSError) as error:
        raise RecipeError(f"no Ray cluster answers at {address}: {error}") from error
    return [Node.of_ray(node.resources_total, node.labels or {}) for node in found]
