"""A finished adapter, merged into its model's weights as they are read: for a policy's start and a reference alike."""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stages.errors import RecipeError
from stages.model_files import adapter_at, adapter_config

_PREFIX = "base_model.model."
_UNKNOWN = ("use_dora", "modules_to_save", "target_parameters", "rank_pattern", "alpha_pattern", "fan_in_fan_out")


class Adapter:
    """Low-rank changes of linear layers, by the layers' names; none where the model's name is no adapter's folder."""

    def __init__(self, name: str):
        self.name, folder = name, adapter_at(name)
        self.scale = 0.0 if folder is None else _scale(folder)
        self.pairs = {} if folder is None else _pairs(folder)
        self._left = set(self.pairs)

    def on(self, key: str, weight: Any) -> Any:
        """What is read of a weight [out, in], with the change of its layer where there is one."""
        layer = key.removesuffix(".weight")
        if layer not in self.pairs:
            return weight
        self._left.discard(layer)
        return _Changed(weight, *self.pairs[layer], self.scale)

    def check(self) -> None:
        """Raises RecipeError where a change belongs to no weight that was read: it would be lost."""
        if self._left:
            raise RecipeError(
                f"{self.name}: the adapter changes {', '.join(sorted(self._left)[:4])}, which are no linear layers of "
                "its base model as its files have it. Merge it with peft, and name the merged model"
            )


class _Changed:
    """A weight in a file, plus scale * B @ A, in float32, of the rows and columns that are asked for."""

    def __init__(self, weight: Any, a: torch.Tensor, b: torch.Tensor, scale: float):
        self._weight, self._a, self._b, self._scale = weight, a, b, scale

    def get_shape(self) -> list[int]:
        shape: list[int] = self._weight.get_shape()
        return shape

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, index: Any) -> torch.Tensor:
        rows, columns = index if isinstance(index, tuple) else (slice(None), slice(None))
        found: torch.Tensor = self._weight[index].float()
        return found.add_(self._b[rows] @ self._a[:, columns], alpha=self._scale)


def _scale(folder: Path) -> float:
    config = adapter_config(folder)
    others = [key for key in _UNKNOWN if config.get(key)]
    if config.get("peft_type") != "LORA" or others or config.get("bias", "none") != "none":
        raise RecipeError(
            f"{folder} is an adapter with {', '.join(others) or config.get('peft_type')}, and only LoRA's products of "
            "two matrices can be merged here. Merge it with peft, and name the merged model"
        )
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _pairs(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise RecipeError(f"{folder} has an adapter_config.json and no {file.name}: save the adapter as safetensors")
    weights = {key.removeprefix(_PREFIX): weight.float() for key, weight in load_file(file).items()}
    layers = {key.removesuffix(".lora_A.weight") for key in weights if key.endswith(".lora_A.weight")}
    both = {f"{layer}.lora_{each}.weight" for layer in layers for each in "AB"}
    if others := sorted(both ^ weights.keys()):
        raise RecipeError(
            f"{file}: {others[0]} is no half of an A and a B. Merge it with peft, and name the merged model"
        )
    return {layer: (weights[f"{layer}.lora_A.weight"], weights[f"{layer}.lora_B.weight"]) for layer in sorted(layers)}
