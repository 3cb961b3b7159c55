"""Loads a causal language model, checks it, and chooses the layout of its pairs."""

import logging
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from stages.errors import RecipeError
from stages.logps import probe
from stages.logps.model import PairLogprobs
from stages.model_files import check_fits, split_revision

_log = logging.getLogger("raydpo")


def load(name: str, dtype: str, longest: int) -> PairLogprobs:
    """Load a local folder or hub name for sequences of up to `longest` tokens, with dropout off.

    Raises RecipeError where the model cannot take that length, or where its log-probs cannot be computed this way.
    """
    check_fits(name, longest)
    folder, revision = split_revision(name)
    causal_lm = AutoModelForCausalLM.from_pretrained(folder, revision=revision, dtype=getattr(torch, dtype))
    _check_rotary(causal_lm.config, name, longest)
    return wrap(cast(PreTrainedModel, causal_lm), name)


def wrap(causal_lm: PreTrainedModel, name: str) -> PairLogprobs:
    """Choose the layout for a model: with prompts shared where its architecture allows it.

    Else the two sequences of a pair are computed apart, and the log says why. Raises RecipeError where weights are
    damaged, and where not even log-probs computed apart would be the model's own.
    """
    if getattr(causal_lm.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        causal_lm.set_attn_implementation("eager")  # transformers' SDPA leaves the soft cap of scores out
    if not isinstance(causal_lm.get_output_embeddings(), nn.Linear):
        raise RecipeError(f"{name} ({type(causal_lm).__name__}) has no linear head over its vocabulary")
    if not probe.own_logps(causal_lm.eval()).isfinite().all():
        raise RecipeError(
            f"{name} gives log-probs that are not finite: its weights are damaged, or too large for a dtype"
        )
    reason = probe.why_apart(causal_lm, name)  # before its layers are taken over
    model = PairLogprobs(causal_lm)
    if reason is None:
        model.share_prompts(True)
    else:
        _log.warning("%s: the two sequences of a pair are computed apart, because %s", name, reason)
    return model


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
