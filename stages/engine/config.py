"""What an engine may take of its machine."""

from pydantic import Field

from stages.config import Config, Count


class EngineResources(Config):
    gpus_per_actor: int = Field(0, ge=0)  # vLLM splits the model over them
    max_num_seqs: Count = 64
    max_num_batched_tokens: Count | None = None  # None: up to 8192, less where logits of so many would be too large
    # Of each GPU, or of the machine's memory; None: 0.85 of a GPU, whose only user an engine is, 0.3 of a machine.
    memory_fraction: float | None = Field(None, gt=0, le=1)
    kv_cache_gib: Count = 1  # CPU only

    @property
    def memory_share(self) -> float:
        return self.memory_fraction or (0.85 if self.gpus_per_actor else 0.3)
