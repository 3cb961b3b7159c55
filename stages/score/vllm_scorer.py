"""Scores with a vLLM engine: token ids in, the log-probs of each completion's tokens out."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stages import schema
from stages.model_files import split_revision, vocabulary
from stages.score.config import ScoreConfig, ScoreResources

_LOGITS_BYTES = 4 << 30  # for the logits of an engine that makes them, and their softmax, for all tokens of a step


class VllmScorer:
    def __init__(self, config: ScoreConfig, resources: ScoreResources, longest: int):
        gpus = resources.gpus_per_actor
        # The engine lives in this process: nothing is copied over a socket, and no orphan is left when the actor dies.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if not gpus:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(resources.kv_cache_gib)
        from vllm import LLM

        folder, revision = split_revision(config.model)
        self.engine = LLM(
            folder,
            revision=revision,
            dtype=config.dtype,
            max_model_len=longest + 1,  # vLLM wants room for the one token that it must generate
            max_num_seqs=resources.max_num_seqs,
            max_num_batched_tokens=resources.max_num_batched_tokens or _batched_tokens(config.model, longest),
            gpu_memory_utilization=resources.memory_fraction,
            tensor_parallel_size=max(gpus, 1),
            distributed_executor_backend="mp" if gpus > 1 else None,  # the ray executor leaks placement groups
            enforce_eager=True,  # scoring is all prefill; graphs gain nothing
            enable_prefix_caching=resources.share_prompt_prefix,
            skip_tokenizer_init=True,
            # A trainer takes the softmax in float32 of what its head gives; here the head can be float32 itself.
            hf_overrides={"head_dtype": "float32"} if gpus and config.dtype != "float32" else None,
        )
        # Model Runner V2 (vLLM 0.32) takes the wanted tokens, and runs the head for them alone; older ones take none.
        self.picks_tokens = bool(self.engine.llm_engine.vllm_config.use_v2_model_runner)
        self.shares_prefix = self.picks_tokens and resources.share_prompt_prefix

    @property
    def path(self) -> str:
        """Which way of asking is used, for the record."""
        return "vllm, tokens picked" if self.picks_tokens else "vllm, all positions"

    def token_logps(self, pairs: pa.Table) -> list[np.ndarray | None]:
        """Per-token log-probs of 2B completions of B pairs: chosen, rejected, chosen, ... float32, nats.

        None where the engine gave nothing for a sequence.
        """
        names = ("prompt", *schema.sides(pairs.column_names))
        prompts, first, second = (pairs[f"{name}_ids"].to_pylist() for name in names)
        # All chosen first: when the rejected come, the prompts are in the engine's cache, if it keeps one.
        sequences = [*zip(prompts, first, strict=True), *zip(prompts, second, strict=True)]
        values = self._picked(sequences, self.shares_prefix) if self.picks_tokens else self._all_positions(sequences)
        if self.shares_prefix:
            # Nothing is given where more than the prompt was found in the cache: both completions begin alike.
            again = [i for i, value in enumerate(values) if value is None]
            for i, value in zip(again, self._picked([sequences[i] for i in again], False), strict=True):
                values[i] = value
        return [value for pair in zip(values[: len(prompts)], values[len(prompts) :], strict=True) for value in pair]

    def _picked(self, sequences: Sequence[tuple[list[int], list[int]]], shared: bool) -> list[np.ndarray | None]:
        from vllm import SamplingParams

        wanted = [
            SamplingParams(
                max_tokens=1,
                temperature=0.0,
                detokenize=False,
                prompt_logprob_token_ids=np.asarray(completion, np.int32)[:, None],
                prompt_logprob_start=len(prompt) - 1,  # the position that predicts the first of them
                skip_reading_prefix_cache=not shared,
            )
            for prompt, completion in sequences
        ]
        outputs = [output.prompt_token_id_logprobs for output in self._generate(sequences, wanted)]
        return [None if values is None else np.asarray(values, np.float32)[:, 0] for values in outputs]

    def _all_positions(self, sequences: Sequence[tuple[list[int], list[int]]]) -> list[np.ndarray | None]:
        from vllm import SamplingParams

        # 0: the log-prob of the prompt's own token at each position, and no others.
        wanted = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, flat_logprobs=True, detokenize=False)
        outputs = [output.prompt_logprobs for output in self._generate(sequences, wanted)]
        # Element j scores token j + 1; the completion is the tail.
        return [
            None if values is None else np.asarray(values.logprobs[-len(completion) :], np.float32)
            for values, (_, completion) in zip(outputs, sequences, strict=True)
        ]

    def _generate(self, sequences: Sequence[tuple[list[int], list[int]]], sampling: Any) -> list[Any]:
        from vllm import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=prompt + completion) for prompt, completion in sequences]
        outputs: list[Any] = self.engine.generate(prompts, sampling, use_tqdm=False)
        return outputs


def _batched_tokens(model: str, longest: int) -> int | None:
    """Tokens of an engine step, at least one sequence's; None, vLLM's own choice, where the vocabulary is not known."""
    size = vocabulary(model)
    return None if size is None else max(longest + 1, min(8192, _LOGITS_BYTES // (size * 6)))  # 2 bytes, and 4
