"""What a finished run leaves: a Hugging Face folder to use."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoTokenizer, PreTrainedModel

from stages.logps.model import PairLogprobs
from stages.model_files import split_revision
from stages.train.config import TrainConfig
from stages.train.lora import merged, save_adapter

_PREFIX = "causal_lm."  # where PairLogprobs holds the model


def _options(config: TrainConfig) -> StateDictOptions:
    """With LoRA, the base model's weights are not kept: they stand in the model that training started from."""
    return StateDictOptions(ignore_frozen_params=config.lora is not None)


def export_policy(folder: Path, model: PairLogprobs, config: TrainConfig) -> None:
    """Weights (safetensors), config, tokenizer and chat template, as transformers and vLLM load them. By all ranks.

    With LoRA, the adapter goes to `adapter` beside `folder`, and `folder` holds the merged model if that is wanted.
    """
    options = replace(_options(config), full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if dist.get_rank() == 0:
        dtype = getattr(torch, config.export_dtype)
        weights = {name.removeprefix(_PREFIX): cast(torch.Tensor, weight).to(dtype) for name, weight in state.items()}
        if config.lora is None:
            _save(folder, model.causal_lm, weights, config)
        else:
            save_adapter(folder.with_name("adapter"), model.causal_lm, weights, config.policy)
            if config.lora.merge:
                _save(folder, merged(config.policy, folder.with_name("adapter"), dtype), None, config)
    dist.barrier()


def _save(
    folder: Path, causal_lm: PreTrainedModel, weights: dict[str, torch.Tensor] | None, config: TrainConfig
) -> None:
    causal_lm.config.dtype = getattr(torch, config.export_dtype)
    causal_lm.save_pretrained(folder, state_dict=weights)
    name, revision = split_revision(config.policy)
    AutoTokenizer.from_pretrained(name, revision=revision).save_pretrained(folder)
