"""What an engine may take of its machine, and how completions are drawn from a model."""

from pydantic import Field, model_validator

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


class Sampling(Config):
    """What decides, with a model and a prompt, which completions are drawn."""

    num_samples: Count = 1  # of each prompt
    temperature: float = Field(1.0, ge=0)  # 0: the likeliest token each time
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: Count = 256  # of a completion
    stop: tuple[str, ...] = ()  # texts that end a completion, beside the model's own end; they are no part of its text
    seed: int = 0

    @model_validator(mode="after")
    def _samples_differ(self) -> "Sampling":
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"temperature: 0 draws the same completion {self.num_samples} times. Set num_samples: 1, or a "
                "temperature above 0"
            )
        if "" in self.stop:
            raise ValueError("stop holds an empty text, which would end every completion. Leave it out")
        return self
