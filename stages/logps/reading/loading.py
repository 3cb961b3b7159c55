"""Loads a causal language model, checks it, and chooses the layout of its pairs."""

import logging
from typing import cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from stages.errors import RecipeError
from stages.logps.check import probe
from stages.logps.model import PairLogprobs
from stages.logps.nf4 import quantize_layers
from stages.logps.reading.weights import is_read, read_weights, weight_files
from stages.model_files import adapter_at, check_fits, split_revision

_log = logging.getLogger("raydpo")


def load(
    name: str, dtype: str, longest: int, device: torch.device | None = None, quantize: str | None = None
) -> PairLogprobs:
    """Load a local folder or hub name for sequences of up to `longest` tokens, with dropout off.

    Raises RecipeError where the model cannot take that length, its files are not whole, or its log-probs cannot be
    computed this way.
    """
    device = device or torch.device("cpu")
    model = describe(name, dtype, longest, device)
    if quantize is not None:
        quantize_layers(model.causal_lm, name)
    read_weights(model.causal_lm, name, device)
    check_weights(model, name, device)
    return model


def describe(name: str, dtype: str, longest: int, device: torch.device) -> PairLogprobs:
    """A model as it will be, on the meta device: its weights are read later, once it is known who holds which of them.

    A model that has to be read as a whole is whole already, on `device`; the log says why.
    """
    check_fits(name, longest)
    folder, revision = split_revision(name)
    try:
        config = AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False)
    except ValueError as error:
        raise RecipeError(
            f"{name} is a model that transformers does not have: {str(error).splitlines()[0][:200]}. Code that comes "
            "with a model is never run; take one that transformers has"
        ) from error
    _check_rotary(config, name, longest)
    reason = None
    if getattr(config, "quantization_config", None):
        reason = "they are quantized"
    elif weight_files(name, getattr(config, "transformers_weights", None)) is None:
        raise RecipeError(
            f"{name} is not in safetensors, and other formats of weights are pickles, which can run anything when they "
            "are read. Convert it where that does no harm: from_pretrained(..).save_pretrained(..) of transformers"
        )
    else:
        with torch.device("meta"):
            causal_lm = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
        _take_generation_config(causal_lm, folder, revision)
        try:
            return wrap(cast(PreTrainedModel, causal_lm), name)
        except probe.NeedsWeights:
            reason = "the layout of its pairs has to be tried on them"
    if adapter_at(name):
        raise RecipeError(
            f"{name} is an adapter, and each process has to read all weights of its model, because {reason}. Merge it "
            "with peft, and name the merged model"
        )
    _log.warning("%s: each process reads all of its weights, because %s", name, reason)
    causal_lm = AutoModelForCausalLM.from_pretrained(
        folder, revision=revision, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True
    )
    return wrap(cast(PreTrainedModel, causal_lm), name).to(device)


def wrap(causal_lm: PreTrainedModel, name: str) -> PairLogprobs:
    """Choose the layout for a model: with prompts shared where its architecture allows it.

    Else the two sequences of a pair are computed apart, and the log says why. Raises RecipeError where weights are
    damaged, and where not even log-probs computed apart would be the model's own; probe.NeedsWeights where the model
    is on the meta device, and no small copy of it can be made.
    """
    if getattr(causal_lm.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        causal_lm.set_attn_implementation("eager")  # transformers' SDPA leaves the soft cap of scores out
    if not isinstance(causal_lm.get_output_embeddings(), nn.Linear):
        raise RecipeError(f"{name} ({type(causal_lm).__name__}) has no linear head over its vocabulary")
    if is_read(causal_lm) and not probe.own_logps(causal_lm.eval()).isfinite().all():
        raise _damaged(name)
    reason = probe.why_apart(causal_lm, name)  # before its layers are taken over
    model = PairLogprobs(causal_lm)
    if reason is None:
        model.share_prompts(True)
    else:
        _log.warning("%s: the two sequences of a pair are computed apart, because %s", name, reason)
    return model


@torch.no_grad()
def check_weights(model: PairLogprobs, name: str, device: torch.device) -> None:
    """Raises RecipeError where log-probs are not finite. Of a sharded model all ranks ask; all are told the same."""
    with torch.compiler.set_stance("force_eager"):  # for a few tokens nothing is compiled
        logps = model(model.lay_out(probe.PROBE).to(device))
    if not logps.isfinite().all():
        raise _damaged(name)


def _damaged(name: str) -> RecipeError:
    return RecipeError(f"{name} gives log-probs that are not finite: its weights are damaged, or too large for a dtype")


def _take_generation_config(causal_lm: PreTrainedModel, folder: str, revision: str | None) -> None:
    """What `from_pretrained` takes beside weights, and an export hands on."""
    if causal_lm.can_generate():
        try:
            causal_lm.generation_config = GenerationConfig.from_pretrained(folder, revision=revision)
        except OSError:  # there is none; that of the config stays
            return


def _check_rotary(config: PreTrainedConfig, name: str, longest: int) -> None:
    """LongRoPE has two sets of frequencies, and takes one for all sequences that are computed together."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    limit = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
    if limit is not None and longest > limit:
        raise RecipeError(
            f"{name} changes its rotary frequencies (LongRoPE) where a sequence has more than {limit} tokens, for all "
            f"that are computed with it, so a pair's log-probs would depend on its neighbours; yours have up to "
            f"{longest} tokens. Set shard.max_length to {limit} or less"
        )
