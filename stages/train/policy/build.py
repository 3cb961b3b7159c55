"""The model that is trained, from its name to its shards, in the one order in which that works."""

import torch
from torch.distributed.fsdp import FSDPModule

from stages.logps.check.probe import check_kernels
from stages.logps.model import PairLogprobs
from stages.logps.nf4 import quantize_layers
from stages.logps.reading.loading import check_weights, describe
from stages.logps.reading.weights import read_weights
from stages.train.config import TrainConfig, TrainResources
from stages.train.policy.freeze import freeze
from stages.train.policy.fsdp import shard_model
from stages.train.policy.layers import prepare_layers
from stages.train.policy.lora import add_adapters, draw_adapters
from stages.train.policy.mesh import Mesh


def build(
    config: TrainConfig, resources: TrainResources, longest: int, mesh: Mesh, device: torch.device
) -> PairLogprobs:
    """Described, adapted and sharded on the meta device; then each rank reads what it holds. By all ranks together.

    Raises RecipeError where the model, or what is asked of it, is not possible.
    """
    # Of what is trained, a step is far below a bfloat16's last digit; what is frozen is only ever computed with.
    model = describe(config.policy, "float32" if config.lora is None else config.dtype, longest, device)
    if device.type == "cuda" and model.shares_prompts and config.dtype != "float32":
        check_kernels(model.causal_lm, config.policy, device, getattr(torch, config.dtype))
    if config.lora is not None:
        add_adapters(model.causal_lm, config.lora)
    if config.quantize is not None:
        quantize_layers(model.causal_lm, config.policy)  # after peft, which looks for linear layers
    freeze(model.causal_lm, config.freeze)
    prepare_layers(model, resources)
    if mesh.exchange is not None:
        model.spread_tokens(mesh.exchange, config.policy)
    shard_model(model, mesh.weights, config.dtype, resources.cpu_offload)
    home = torch.device("cpu") if resources.cpu_offload else device
    if config.lora is not None:
        draw_adapters(model.causal_lm, config.seed, home)
    read_weights(model.causal_lm, config.policy, home)
    check_weights(model, config.policy, device)
    if isinstance(model, FSDPModule):
        model.reshard()  # the root stays gathered after a forward pass, and the optimizer wants its shards
    return model
