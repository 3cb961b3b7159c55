"""FSDP2, applied to the model from outside: layers first, then the embedding and head, then the rest as the root."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import Shard

from stages.errors import RecipeError
from stages.logps.model import PairLogprobs


def shard_model(model: PairLogprobs, mesh: DeviceMesh, dtype: str, cpu_offload: bool = False) -> None:
    """Shard in place. Weights, their gradients' reduction and the optimizer stay float32; compute runs in `dtype`.

    The model may be on the meta device: its weights are read afterwards. A single worker that computes in float32 has
    nothing to gather, and is left alone. Raises RecipeError where stacked experts can be shared neither by their number
    nor by their width.
    """
    if mesh.size() == 1 and dtype == "float32" and not cpu_offload:
        return
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == "float32" else getattr(torch, dtype),
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the inputs are token ids
    )
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if cpu_offload else OffloadPolicy()

    shards = mesh.size(mesh.ndim - 1)

    def place(weight: nn.Parameter) -> Shard | None:
        """Fewer experts than shards are cut along their last axis: along the middle one, two weights stand joined."""
        if weight.ndim != 3 or len(weight) >= shards:
            return None
        if weight.shape[2] % shards:
            raise RecipeError(
                f"{len(weight)} experts of width {weight.shape[2]} cannot be shared by {shards} ranks: take at most "
                f"{len(weight)} of them, or a number that divides the width (cluster.train.workers)"
            )
        return Shard(2)

    def shard(module: nn.Module) -> None:
        fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload, shard_placement_fn=place)

    for layer in model.layers:
        shard(layer)
    embedding = model.causal_lm.get_input_embeddings()
    if embedding.weight is not model.head.weight:  # else it is one weight, of the root, gathered once for both uses
        shard(embedding)
        embedding.set_unshard_in_backward(False)  # the gradient of a look-up does not need what was looked up in
        shard(model.head)
        register_fsdp_forward_method(model.head, "target_logps")
    shard(model)
