"""What the reference is, and how exactly it is computed."""

from typing import Literal

from pydantic import Field, model_validator

from stages.config import Config, Count, Elastic, Fraction, Labels
from stages.engine.config import EngineResources


class Acceptance(Config):
    """When the result is good enough. Not a part of its identity: it decides whether it stands, not what it is."""

    max_rejected_fraction: Fraction = 0.01  # of pairs that could not be scored
    # A sample of pairs is computed again by the forward pass of training, and compared; 0 for none.
    calibration_pairs: int = Field(256, ge=0)
    dtype: Literal["float32", "bfloat16"] | None = None  # of that pass; None: that of the reference
    beta: float = Field(0.1, gt=0)  # the difference of a margin is stated times this
    # Root mean square a token, nats; past it there is a warning, past five times of it an error.
    max_token_difference: float | None = Field(None, gt=0)  # None: 1e-3 where all is float32, 0.1 otherwise

    def dtype_of(self, reference: str) -> str:
        return self.dtype or reference


class ScoreConfig(Config):
    model: str  # the frozen reference: folder or hub name "org/name@revision"
    backend: Literal["vllm", "torch"] = "vllm"  # torch: the numerics of training, for any model transformers has
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quantize: Literal["nf4"] | None = None  # linear layers of four bits, by the torch backend; for train.quantize
    accept: Acceptance = Acceptance()

    @model_validator(mode="after")
    def _torch_quantizes(self) -> "ScoreConfig":
        if self.quantize is not None and self.backend != "torch":
            raise ValueError(
                f"quantize: {self.quantize} is computed by backend: torch alone; {self.backend} would round in another "
                "way than training does"
            )
        return self


class ScoreResources(EngineResources):
    actors: Count | Elastic = 1
    cpus_per_actor: Count = 1
    labels: Labels = {}
    attempts: Count = 3  # at a part, before the pairs that make it fail are searched for and set aside
    share_prompt_prefix: bool = False  # a prompt is computed once a pair, where the engine picks tokens (V2 runner)
    # Of the torch backend:
    max_tokens_per_batch: Count = 8192  # bounds memory
    compile: bool = False  # each decoder layer, with torch.compile; needs a C++ compiler, and time at the start
