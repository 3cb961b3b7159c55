"""Who among the ranks holds which shards of the weights, and who computes which pairs, or which tokens of them."""

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from stages.errors import RecipeError
from stages.logps.exchange import Exchange
from stages.train.config import TrainResources


class Mesh:
    """Made by all ranks together. Both divisions are into runs of neighbours, which Ray places on one node.

    Weights: each `shard_size` ranks hold one copy between them; the copies' gradients are summed once a step.
    Pairs: each `context_parallel` ranks compute the same ones, each a part of the tokens.
    """

    def __init__(self, device_type: str, world: int, resources: TrainResources):
        check_world(world, resources)
        shard, degree = resources.shard_size or world, resources.context_parallel
        sizes, names = ((world // shard, shard), ("copy", "shard")) if shard < world else ((world,), ("shard",))
        self.weights = init_device_mesh(device_type, sizes, mesh_dim_names=names)
        self.rank, self.world = dist.get_rank() // degree, world // degree  # of those that compute different pairs
        self.group: dist.ProcessGroup | None = None  # of these; None: all ranks
        self.exchange: Exchange | None = None
        if degree > 1:
            pairs = init_device_mesh(device_type, (self.world, degree), mesh_dim_names=("pairs", "tokens"))
            self.group, self.exchange = pairs.get_group("pairs"), Exchange(pairs.get_group("tokens"))


def check_world(world: int, resources: TrainResources) -> None:
    """Raises RecipeError where so many ranks cannot be divided as `resources` say."""
    if world % resources.multiple:
        raise RecipeError(
            f"{world} workers cannot be divided by cluster.train.shard_size {resources.shard_size} and "
            f"context_parallel {resources.context_parallel}: their number must be a multiple of "
            f"{resources.multiple}. In an elastic run nodes must have room for as many, or these fields be left out; "
            "its checkpoints stay, and any number of workers takes them up"
        )
