"""FSDP2, applied to the model from outside: layers first, then the rest as the root."""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from stages.logps.model import PairLogprobs


def shard_model(model: PairLogprobs, mesh: DeviceMesh, dtype: str) -> None:
    """Shard in place. Weights, their gradients' reduction and the optimizer stay float32; compute runs in `dtype`."""
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == "float32" else getattr(torch, dtype),
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the inputs are token ids
    )
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
