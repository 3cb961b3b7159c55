"""Scores with a vLLM engine: token ids in, the prompt log-probs of each whole sequence out."""

import os

import numpy as np
import pyarrow as pa

from stages.model_files import split_revision
from stages.score.config import ScoreConfig, ScoreResources


class VllmScorer:
    def __init__(self, config: ScoreConfig, resources: ScoreResources, longest: int):
        gpus = resources.gpus_per_actor
        # The engine lives in this process: nothing is copied over a socket, and no orphan is left when the actor dies.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if not gpus:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(resources.kv_cache_gib)
        from vllm import LLM, SamplingParams

        folder, revision = split_revision(config.model)
        self.engine = LLM(
            folder,
            revision=revision,
            dtype=config.dtype,
            max_model_len=longest + 1,  # vLLM wants room for the one token that it must generate
            max_num_seqs=resources.max_num_seqs,
            max_num_batched_tokens=resources.max_num_batched_tokens,
            gpu_memory_utilization=resources.memory_fraction,
            tensor_parallel_size=max(gpus, 1),
            distributed_executor_backend="mp" if gpus > 1 else None,  # the ray executor leaks placement groups
            enforce_eager=True,  # scoring is all prefill; graphs gain nothing
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
        )
        # 0: the log-prob of the prompt's own token at each position, and no others.
        self.sampling = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, flat_logprobs=True, detokenize=False
        )

    def token_logps(self, pairs: pa.Table) -> list[np.ndarray]:
        """Per-token log-probs of 2B completions of B pairs: chosen, rejected, chosen, ... float32, nats."""
        from vllm import TokensPrompt

        lengths, prompts = [], []
        for row in pairs.select(["prompt_ids", "chosen_ids", "rejected_ids"]).to_pylist():
            for side in ("chosen_ids", "rejected_ids"):
                prompts.append(TokensPrompt(prompt_token_ids=row["prompt_ids"] + row[side]))
                lengths.append(len(row[side]))
        outputs = self.engine.generate(prompts, self.sampling, use_tqdm=False)
        # Element j scores token j + 1; the completion is the tail.
        return [
            np.asarray(output.prompt_logprobs.logprobs[-length:], np.float32)
            for output, length in zip(outputs, lengths, strict=True)
        ]
