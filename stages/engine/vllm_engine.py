"""Starts a vLLM engine in this process, and says what it can do."""

import os
from typing import TYPE_CHECKING

from stages.engine.config import EngineResources
from stages.model_files import max_positions, split_revision, vocabulary

if TYPE_CHECKING:
    from vllm import LLM

_LOGITS_BYTES = 4 << 30  # for the logits of an engine that makes them, and their softmax, for all tokens of a step


def start_engine(
    model: str, dtype: str, context: int, resources: EngineResources, keep_prefixes: bool, generates: bool = False
) -> "LLM":
    """An engine that takes token ids, for sequences of up to `context` tokens, what it generates included.

    `keep_prefixes`: what sequences start with alike is computed once, as long as the cache holds it. `generates`: it
    gives texts too, and ends where the model's tokenizer and generation_config.json say.
    """
    gpus = resources.gpus_per_actor
    # The engine lives in this process: nothing is copied over a socket, and no orphan is left when the actor dies.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not gpus:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(resources.kv_cache_gib)
        if generates:
            # All that it would compile is the rank of the token drawn, which nobody asks for: that takes seconds, and a
            # C++ compiler.
            os.environ["TORCH_COMPILE_DISABLE"] = "1"
    if (limit := max_positions(model)) is not None and context == limit + 1:
        # The token past the model's positions is sampled and never fed: a sequence may be as long as these.
        os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    from vllm import LLM

    folder, revision = split_revision(model)
    return LLM(
        folder,
        revision=revision,
        dtype=dtype,
        trust_remote_code=False,
        load_format="safetensors",  # other formats are pickles
        max_model_len=context,
        max_num_seqs=resources.max_num_seqs,
        max_num_batched_tokens=_batched_tokens(model, context, resources, generates),
        gpu_memory_utilization=resources.memory_share,
        tensor_parallel_size=max(gpus, 1),
        distributed_executor_backend="mp" if gpus > 1 else None,  # the ray executor leaks placement groups
        # Graphs save a GPU's launches, of which drawing a token has many for little work; scoring is all prefill.
        enforce_eager=not (generates and gpus),
        enable_prefix_caching=keep_prefixes,
        skip_tokenizer_init=not generates,
        # Of a prompt read in pieces it samples after each, and takes that back: of a CPU's generators it cannot.
        enable_chunked_prefill=False if generates and not gpus else None,
        # A trainer takes the softmax in float32 of what its head gives; here the head can be float32 itself.
        hf_overrides={"head_dtype": "float32"} if gpus and dtype != "float32" else None,
    )


def picks_tokens(engine: "LLM") -> bool:
    """Whether it is told the tokens whose log-probs are wanted, and runs its head for these (Model Runner V2).

    Engines that know nothing of either give every position.
    """
    from vllm import SamplingParams

    new_runner = getattr(engine.llm_engine.vllm_config, "use_v2_model_runner", False)
    return bool(new_runner) and hasattr(SamplingParams, "prompt_logprob_token_ids")


def _batched_tokens(model: str, context: int, resources: EngineResources, whole: bool) -> int | None:
    """Tokens of an engine step, at least one sequence's; None, vLLM's own choice, where the vocabulary is not known.

    `whole`: one that generates on a CPU reads no prompt in pieces.
    """
    if resources.max_num_batched_tokens is not None:
        return max(resources.max_num_batched_tokens, context if whole else 0)
    size = vocabulary(model)
    return None if size is None else max(context, min(8192, _LOGITS_BYTES // (size * 6)))  # 2 bytes, and 4
