"""What a finished run leaves: a sharded checkpoint to resume from, and a Hugging Face folder to use."""

from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict
from transformers import AutoTokenizer

from stages.logps.model import PairLogprobs
from stages.model_files import split_revision
from stages.train.config import TrainConfig

_PREFIX = "causal_lm."  # where PairLogprobs holds the model


def save_checkpoint(folder: Path, model: PairLogprobs, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Model, optimizer and step, each rank its shard. Called by all ranks."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state, "step": step}, checkpoint_id=folder)


def export_policy(folder: Path, model: PairLogprobs, config: TrainConfig) -> None:
    """Weights (safetensors), config, tokenizer and chat template, as transformers and vLLM load them. By all ranks."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        dtype = getattr(torch, config.export_dtype)
        weights = {name.removeprefix(_PREFIX): cast(torch.Tensor, weight).to(dtype) for name, weight in state.items()}
        model.causal_lm.config.dtype = dtype
        model.causal_lm.save_pretrained(folder, state_dict=weights)
        name, revision = split_revision(config.policy)
        AutoTokenizer.from_pretrained(name, revision=revision).save_pretrained(folder)
    dist.barrier()
