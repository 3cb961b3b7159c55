"""Low-rank adapters through peft, inside the model that FSDP shards."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stages.errors import ContractError, RecipeError
from stages.train.config import Lora

_log = logging.getLogger("raydpo")
_PREFIX = "base_model.model."  # what peft's own wrapper, which we do without, puts before each name


def add_adapters(causal_lm: PreTrainedModel, lora: Lora) -> None:
    """Freeze the model and add adapters, float32, on the meta device: `draw_adapters` gives them their numbers.

    Raises RecipeError where `lora.targets` names no linear layer, the head, or what became experts or a router.
    """
    causal_lm.requires_grad_(False)
    wanted = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rank_stabilized,
        target_modules=_targets(causal_lm, lora),
        task_type="CAUSAL_LM",
    )
    inject_adapter_in_model(wanted, causal_lm, low_cpu_mem_usage=True)
    for weight in causal_lm.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


@torch.no_grad()
def draw_adapters(causal_lm: PreTrainedModel, seed: int, device: torch.device) -> None:
    """Adapters that change nothing yet: B is zero, and A as peft draws it, from `seed`.

    Each rank draws all of them, whole, and keeps its shards: the numbers are the same on any number of ranks.
    """
    random = torch.Generator().manual_seed(seed)
    for name, module in list(causal_lm.named_modules()):
        if not name.endswith((".lora_A.default", ".lora_B.default")):
            continue
        weight = module.weight
        whole = torch.zeros(weight.shape)
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=random)
        whole = whole.to(device)
        if isinstance(weight, DTensor):
            whole = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
        module.weight = nn.Parameter(whole)
        module.weight._is_hf_initialized = True  # or transformers would draw it again while it reads the others


def _targets(causal_lm: PreTrainedModel, lora: Lora) -> list[str]:
    """Names of the linear layers to adapt, without what stands before them.

    Of a mixture of experts peft takes some names, those that its experts and router once had, for stacked weights and
    the router. Their adapters are another thing: no linear layer has them, and nothing here would merge them.
    """
    head = causal_lm.get_output_embeddings()
    linear: set[str] = set()
    others: set[str] = set()
    for name, module in causal_lm.named_modules():
        if module is not head:
            (linear if isinstance(module, nn.Linear | Conv1D) else others).add(name.rpartition(".")[2])
    linear -= others
    of_experts = {name for name in linear | others if _is_of_experts(name, causal_lm)}
    there_are = f"there are {', '.join(sorted(linear - of_experts))}"
    if lora.targets == "all-linear":
        if of_experts & linear:
            _log.info("train.lora.targets all-linear: %s; not %s", there_are, ", ".join(sorted(of_experts & linear)))
        return sorted(linear - of_experts)
    if any(module is head and name.rpartition(".")[2] in lora.targets for name, module in causal_lm.named_modules()):
        raise RecipeError("train.lora.targets must not name the head: log-probs are computed from its weight in chunks")
    if named := of_experts & set(lora.targets):
        raise RecipeError(
            f"train.lora.targets: {', '.join(sorted(named))} would adapt this model's experts or its router, which are "
            f"no linear layers; {there_are}"
        )
    if unknown := set(lora.targets) - linear:
        raise RecipeError(f"train.lora.targets: no linear layer is named {', '.join(sorted(unknown))}; {there_are}")
    return sorted(set(lora.targets))


def _is_of_experts(name: str, causal_lm: PreTrainedModel) -> bool:
    wanted = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(wanted, causal_lm, None)
    except ValueError:  # one of several weights that are one now
        return True
    return bool(wanted.target_parameters)


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
    """Some of the model's weights by name, with their adapters -> those of the base model, with the adapters added.

    Raises ContractError where an adapter's base is not among them: it would be lost.
    """
    merged, left = {}, {name for name in weights if "lora_" in name}
    for name, weight in weights.items():
        layer, is_adapted, rest = name.partition(".base_layer.")
        if is_adapted and rest == "weight":
            adapter = causal_lm.get_submodule(layer)
            a, b = (f"{layer}.lora_{each}.default.weight" for each in "AB")
            change = weights[b] @ weights[a]
            weight = weight + adapter.scaling["default"] * (change.t() if adapter.fan_in_fan_out else change)
            left -= {a, b}
        if "lora_" not in name:
            merged[f"{layer}.{rest}" if is_adapted else name] = weight
    if left:
        raise ContractError(
            f"the adapters {', '.join(sorted(left)[:4])} belong to no linear layer, and cannot be merged into the "
            "model. Leave train.lora.merge out, and name linear layers in train.lora.targets"
        )
    return merged
