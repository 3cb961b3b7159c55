"""What a finished run leaves to use: a Hugging Face folder, written a piece at a time."""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from stages.logps.model import PairLogprobs
from stages.logps.nf4 import dequantized
from stages.model_files import tokenizer_at
from stages.train.config import TrainConfig
from stages.train.policy.lora import merge_adapters, save_adapter
from stages.train.policy.weight_files import FILE_BYTES, WeightFiles

_PREFIX = "causal_lm."  # where PairLogprobs holds the model


def export_policy(folder: Path, model: PairLogprobs, config: TrainConfig, file_bytes: int = FILE_BYTES) -> None:
    """Weights (safetensors), config, tokenizer and chat template, as transformers and vLLM load them. By all ranks.

    Rank 0 holds what goes into one file, of about `file_bytes`, and one decoder layer; the others a tensor. With LoRA,
    the adapter goes to `adapter` beside `folder`, and `folder` holds the merged model if that is wanted.
    """
    causal_lm = model.causal_lm
    if config.lora is not None:
        adapters = {name: _whole(weight) for name, weight in _weights(model).items() if "lora_" in name}
        if dist.get_rank() == 0:
            save_adapter(folder.with_name("adapter"), causal_lm, adapters, config.policy)
    if config.lora is None or config.lora.merge:
        dtype = getattr(torch, config.export_dtype)
        files = WeightFiles(folder, file_bytes) if dist.get_rank() == 0 else None
        for layer in _layer_by_layer(model):
            if files:
                merged = merge_adapters(causal_lm, dequantized(layer)) if config.lora is not None else layer
                named = revert_weight_conversion(causal_lm, merged)  # as the model's own files name and cut them
                files.add({name: weight.to(dtype) for name, weight in named.items()})
        if files:
            files.close()
            _save_rest(folder, causal_lm, config)
    dist.barrier()


def _layer_by_layer(model: PairLogprobs) -> Iterator[dict[str, torch.Tensor]]:
    """Whole tensors on the CPU, in groups: a layer, or a tensor that belongs to none. Tied ones stand once."""
    causal_lm = model.causal_lm
    left_out = {*causal_lm.all_tied_weights_keys, *(causal_lm._keys_to_ignore_on_save or ())}
    weights = {name: weight for name, weight in _weights(model).items() if name not in left_out}

    def layer_of(name: str) -> str:
        numbered = re.match(r".*?\.\d+\.", name)
        return numbered[0] if numbered else name

    for _, names in groupby(weights, layer_of):
        yield {name: _whole(weights[name]) for name in names}


def _weights(model: PairLogprobs) -> dict[str, Any]:
    """By their names in the model; each rank's shards, where it is sharded."""
    state = get_model_state_dict(model, options=StateDictOptions())
    return {name.removeprefix(_PREFIX): weight for name, weight in state.items()}


def _whole(weight: torch.Tensor) -> torch.Tensor:
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().cpu()


def _save_rest(folder: Path, causal_lm: PreTrainedModel, config: TrainConfig) -> None:
    causal_lm.config.dtype = config.export_dtype
    causal_lm.config.architectures = [type(causal_lm).__name__.removeprefix("FSDP")]  # FSDP2 puts its name before it
    causal_lm.config.save_pretrained(folder)
    if causal_lm.can_generate():
        causal_lm.generation_config.save_pretrained(folder)
    name, revision = tokenizer_at(config.policy)
    AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False).save_pretrained(folder)
