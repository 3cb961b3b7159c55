"""How the policy is trained. There is no field for a reference model: training reads only its log-probs."""

from typing import Literal

from pydantic import Field, model_validator

from stages.config import Config, Count, Fraction
from stages.train.objective.named.loss import Loss
from stages.train.objective.named.paired import Sigmoid


class Lora(Config):
    """Train low-rank adapters (Hu et al., 2021) and leave the base model, the cached reference, as it is."""

    rank: Count = 16
    alpha: Count = 32  # adapters are scaled by alpha / rank
    targets: Literal["all-linear"] | list[str] = "all-linear"  # names of linear layers, as peft takes them
    merge: bool = False  # export the merged model as well


class TrainConfig(Config):
    policy: str  # the model to start from: folder or hub name "org/name@revision"
    starts_at_reference: bool = True  # policy equal to reference at step 1; ref_tolerance is then enforced
    ref_tolerance: float = Field(0.01, gt=0)  # largest difference of a token's log-prob at step 1, nats
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the forward and backward pass; weights stay float32
    export_dtype: Literal["float32", "bfloat16"] = "float32"

    lora: Lora | None = None  # None: all weights are trained

    loss: Loss = Sigmoid()  # by name, with its own fields (objective/named/); a list is a weighted sum

    global_batch: Count = 64  # pairs, or labelled completions, an optimizer step, whatever the number of workers
    epochs: float = Field(1.0, gt=0)
    max_steps: Count | None = None  # stop early
    seed: int = Field(0, ge=0)
    shuffle_window: Count = 65536  # pairs: a larger set is shuffled window by window, and read in long stretches
    eval_steps: Count | None = None  # look at the held-out pairs every so many steps; None: at start and end alone
    max_skipped_steps: int = Field(10, ge=0)  # with a loss or gradient that is not finite; one more ends the run

    lr: float = Field(5e-7, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: Fraction = 0.1  # of the steps
    weight_decay: float = Field(0.0, ge=0)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = Field(1e-8, gt=0)
    max_grad_norm: float | None = Field(1.0, gt=0)

    @property
    def unread(self) -> frozenset[str]:
        return frozenset() if self.loss.reference else frozenset({"logprobs"})


class Elastic(Config):
    """As many workers as there is room for."""

    min: Count = 1
    max: Count

    @model_validator(mode="after")
    def _in_order(self) -> "Elastic":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


class TrainResources(Config):
    workers: Count | Elastic = 1  # a number, or {min: .., max: ..}: then a run goes on without nodes that it loses
    cpus_per_worker: Count = 1
    gpus_per_worker: int = Field(0, ge=0, le=1)
    restarts: int = Field(3, ge=0)  # of all workers, when one dies, with or without its node; preemptions do not count
    resize_seconds: float = Field(60, gt=0)  # how often an elastic run looks for room for more workers
    stall_seconds: float = Field(600, gt=0)  # a step that takes longer is reported with each worker's stack
    checkpoint_steps: Count | None = None  # save every so many steps; None: by time alone
    checkpoint_minutes: float = Field(15, gt=0)
    keep_checkpoints: Count = 2  # the newest, and besides the one of the lowest loss on held-out pairs
    cache: str | None = (
        None  # folder on each node's own disk, for three windows of pairs; None: the system's for scratch
    )
    # What follows trades memory for time; the result does not depend on it but for rounding.
    max_tokens_per_microbatch: Count = 8192
    activation_checkpointing: Literal["none", "selective", "layer"] = "none"  # selective: all but matmuls is recomputed
    compile: bool = False  # each decoder layer, with torch.compile; needs a C++ compiler, and time at the start
    cpu_offload: bool = False  # weights, gradients and optimizer in the memory of the host; for GPUs
