"""Activation checkpointing and compilation, applied to each decoder layer from outside, before FSDP."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from stages.logps.model import PairLogprobs
from stages.train.config import TrainResources

aten = torch.ops.aten
# Dear to compute, and no larger than what is recomputed from them.
_KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten._grouped_mm.default,  # of experts: a tenth faster than computing them again, on a CPU
    torch.ops.raydpo.product.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


def prepare_layers(model: PairLogprobs, resources: TrainResources) -> None:
    """Change the model in place as `resources` say; it computes the same."""
    for number, layer in enumerate(model.layers):
        context_fn: dict[str, Any] = {}
        if resources.activation_checkpointing == "selective":
            context_fn["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_keep, _kept_of(layer)))
        if resources.activation_checkpointing != "none":
            layer = checkpoint_wrapper(layer, preserve_rng_state=False, **context_fn)  # no dropout: nothing random
            model.layers[number] = layer
    if resources.compile:
        model.compile_layers()


def _kept_of(layer: nn.Module) -> set[Any]:
    """Where experts have biases (gpt-oss), transformers adds them into their products, which cannot be kept then."""
    biased = any(getattr(module, "has_bias", False) for module in layer.modules())
    return _KEPT - {aten._grouped_mm.default} if biased else _KEPT


def _keep(operators: set[Any], _context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    kept = operator in operators or "varlen" in str(operator)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
