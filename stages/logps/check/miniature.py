"""A model's architecture in small: a copy of its class, float32, with a few thousand random weights.

What a model does to tokens is decided by its code and its config, not by its weights. The miniature answers questions
about it exactly and in a second, however large the model is and whatever precision it is in.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from stages.logps.check.small_config import shrink

_LARGEST = 2**26  # weights; most have 0.1 million, so more means that a size was not understood


def miniatures(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Copies of `model` in small that have a layer of each of its kinds, the best first; it may be on any device.

    Weights are far from zero, biases and norms too, and the same each time; calmer in every other copy, as some models
    make much of rounding. Yields nothing where no copy can be made: where a size or a rule of layers is not understood.
    No state of the caller is touched.
    """
    wanted = _kinds(model)
    for all_layers, gain in ((False, 2.0), (False, 0.5), (True, 2.0), (True, 0.5)):
        try:
            config = shrink(model.config, all_layers)
            with torch.device("meta"):
                size = sum(weight.numel() for weight in _build(type(model), deepcopy(config)).parameters())
            if size > _LARGEST:
                continue
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(0)
                copy = _build(type(model), config)
                _disturb(copy, gain)
        except Exception:  # any class may reject, in its own way, what it has not been tried with
            continue
        if wanted <= _kinds(copy):
            yield copy


@torch.no_grad()
def nudged(copy: PreTrainedModel) -> PreTrainedModel:
    """A copy of a miniature whose weights differ in their last digits: what it gives differs as by rounding."""
    copy = deepcopy(copy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in copy.parameters():
            weight.mul_(1 + 2**-22 * torch.randn_like(weight))
    return copy


def _build(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    model: PreTrainedModel = kind._from_config(config, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def _disturb(model: PreTrainedModel, gain: float) -> None:
    """So far from zeros and ones that a bias or norm left out would show, or a cap of scores or logits."""
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight) * (0.1 if weight.ndim == 1 else gain * weight.shape[-1] ** -0.5))
    if isinstance(head := model.get_output_embeddings(), nn.Linear):
        head.weight.mul_(8 / gain)


def _kinds(model: PreTrainedModel) -> set[tuple[Any, ...]]:
    """Of the decoder's modules that are its own, not torch's or a quantizer's: their classes, with their switches.

    Numbers are sizes, and left out; None is not, as it stands for a number that is not there: no window, say.
    """
    files = {kind.__module__ for kind in type(model).__mro__}
    return {
        (type(module), *sorted((name, repr(value)) for name, value in vars(module).items() if _is_switch(name, value)))
        for module in (model.get_decoder() or model).modules()
        if type(module).__module__.startswith("transformers.models.") or type(module).__module__ in files
        if not isinstance(module, PreTrainedModel)
    }


def _is_switch(name: str, value: Any) -> bool:
    return isinstance(value, bool | str | None) and name != "training" and not name.startswith("_")
