"""Low-rank adapters through peft, inside the model that FSDP shards."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from transformers import PreTrainedModel

from stages.errors import RecipeError
from stages.train.config import Lora

_PREFIX = "base_model.model."  # what peft's own wrapper, which we do without, puts before each name


def add_adapters(causal_lm: PreTrainedModel, lora: Lora, seed: int) -> None:
    """Freeze the model and add adapters that change nothing yet (B is zero; A is drawn from `seed` on every rank).

    Raises RecipeError where `lora.targets` names no layer, or the head.
    """
    torch.manual_seed(seed)
    causal_lm.requires_grad_(False)
    wanted = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, task_type="CAUSAL_LM")
    names = [name.rpartition(".")[2] for name, _ in causal_lm.named_modules()]
    if isinstance(lora.targets, list) and (unknown := set(lora.targets) - set(names)):
        linear = sorted({n.rpartition(".")[2] for n, m in causal_lm.named_modules() if isinstance(m, torch.nn.Linear)})
        raise RecipeError(f"train.lora.targets: no layer is named {', '.join(unknown)}; there are {', '.join(linear)}")
    inject_adapter_in_model(wanted, causal_lm)
    if not isinstance(causal_lm.get_output_embeddings(), torch.nn.Linear):  # peft has put its own layer there
        raise RecipeError("train.lora.targets must not name the head: log-probs are computed from its weight in chunks")


def save_adapter(folder: Path, causal_lm: PreTrainedModel, state: dict[str, Any], base: str) -> None:
    """`state`: the adapters' weights by name. Written as peft's PeftModel.from_pretrained reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    adapters = get_peft_model_state_dict(causal_lm, state_dict=state)
    save_file(
        {_PREFIX + name: weight.contiguous() for name, weight in adapters.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    wanted = causal_lm.peft_config["default"]
    wanted.base_model_name_or_path, wanted.inference_mode = base, True
    wanted.save_pretrained(folder)


def merge_adapters(causal_lm: PreTrainedModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Some of the model's weights by name, with their adapters -> those of the base model, with the adapters added."""
    merged = {}
    for name, weight in weights.items():
        layer, is_adapted, rest = name.partition(".base_layer.")
        if is_adapted and rest == "weight":
            adapter = causal_lm.get_submodule(layer)
            change = weights[f"{layer}.lora_B.default.weight"] @ weights[f"{layer}.lora_A.default.weight"]
            weight = weight + adapter.scaling["default"] * (change.t() if adapter.fan_in_fan_out else change)
        if "lora_" not in name:
            merged[f"{layer}.{rest}" if is_adapted else name] = weight
    return merged
