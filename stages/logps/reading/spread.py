"""A model over several devices of one process, for scoring what one of them cannot hold. Training shards instead."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from stages.logps.check.probe import check_kernels
from stages.logps.layout import Stretches
from stages.logps.model import PairLogprobs
from stages.logps.reading.loading import load


def load_spread(
    name: str, dtype: str, longest: int, gpus: int, quantize: str | None = None
) -> tuple[PairLogprobs, torch.device]:
    """A model on as many GPUs of this process, or on its CPUs where that is 0; and the device that its inputs go to."""
    devices = [torch.device("cuda", number) for number in range(gpus)] or [torch.device("cpu")]
    model = load(name, dtype, longest, devices[0] if len(devices) == 1 else torch.device("cpu"), quantize)
    if gpus and model.shares_prompts and dtype != "float32":
        check_kernels(model.causal_lm, name, devices[0], getattr(torch, dtype))
    return spread(model, devices) if len(devices) > 1 else model, devices[0]


def spread(model: PairLogprobs, devices: Sequence[torch.device]) -> PairLogprobs:
    """Move each decoder layer as a whole to one of `devices`, in order, so that each holds about as many bytes; and all
    else to the first. In place.

    Inputs follow: hidden states once from device to device, and what each layer is given beside them. What the model
    gives is on the first device. No device ever holds more than its share and one layer.
    """
    first = devices[0]
    sizes = [_bytes(layer) for layer in model.layers]
    placed = _bytes(model) - sum(sizes)
    share = (placed + sum(sizes)) / len(devices)
    for layer, size in zip(model.layers, sizes, strict=True):
        device = devices[min(int((placed + size / 2) / share), len(devices) - 1)]
        placed += size
        _move(layer.modules(), device)
        if len(devices) > 1:
            layer.register_forward_pre_hook(partial(_follow, device), with_kwargs=True)
    model.layers[-1].register_forward_hook(partial(_come_back, first))
    in_layers = {module for layer in model.layers for module in layer.modules()}
    _move((module for module in model.modules() if module not in in_layers), first)
    return model


def _move(modules: Iterable[nn.Module], device: torch.device) -> None:
    """The modules' own tensors; what is tied stays tied."""
    moved: dict[nn.Parameter, nn.Parameter] = {}
    for module in modules:
        for name, weight in module._parameters.items():
            if weight is not None:
                if weight not in moved:
                    moved[weight] = nn.Parameter(weight.detach().to(device), weight.requires_grad)
                module._parameters[name] = moved[weight]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])


@torch.compiler.disable
def _follow(device: torch.device, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return _on(device, inputs), {name: _on(device, value) for name, value in named.items()}


@torch.compiler.disable
def _come_back(device: torch.device, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    return _on(device, output)


def _on(device: torch.device, value: Any) -> Any:
    """Dictionaries stay as they are: layers may write into them."""
    if isinstance(value, torch.Tensor | Stretches):
        return value.to(device)
    return tuple(_on(device, each) for each in value) if isinstance(value, tuple) else value
