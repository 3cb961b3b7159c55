"""What an engine may take of its machine."""

from pydantic import Field

from stages.config import Config, Count


class EngineResources(Config):
    gpus_per_actor: int = Field(0, ge=0)  # vLLM splits the model over them
    max_num_seqs: Count = 64
    max_num_batched_tokens: Count | None = None  # None: up to 8192, less where logits of so many would be too large
    memory_fraction: float = Field(0.3, gt=0, le=1)  # of the GPU, or of the machine's memory
    kv_cache_gib: Count = 1  # CPU only
