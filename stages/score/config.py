"""What the reference is, and how exactly it is computed."""

from typing import Literal

from pydantic import Field

from stages.config import Config, Count


class ScoreConfig(Config):
    model: str  # the frozen reference: folder or hub name "org/name@revision"
    backend: Literal["vllm", "torch"] = "vllm"  # torch: the numerics of training, for any model transformers has
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


class ScoreResources(Config):
    actors: Count = 1
    cpus_per_actor: Count = 1
    gpus_per_actor: int = Field(0, ge=0)  # vLLM splits the model over them
    # vLLM
    max_num_seqs: Count = 64
    max_num_batched_tokens: Count | None = None  # None: vLLM's own choice
    memory_fraction: float = Field(0.3, gt=0, le=1)  # of the GPU, or of the machine's memory
    kv_cache_gib: Count = 1  # CPU only
    # torch
    max_tokens_per_batch: Count = 8192  # of the torch scorer: bounds its memory
