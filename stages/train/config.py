"""How the policy is trained. There is no field for a reference model: training reads only its log-probs."""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from stages.config import Config, Count, Elastic, Fraction, Labels, fewest, most
from stages.train.objective.named.loss import Loss
from stages.train.objective.named.paired import Sigmoid


class Lora(Config):
    """Train low-rank adapters (Hu et al., 2021) and leave the base model, the cached reference, as it is."""

    rank: Count = 16
    alpha: Count = 32  # adapters are scaled by alpha / rank,
    rank_stabilized: bool = False  # or by alpha / sqrt(rank): rsLoRA (Kalajdzievski, 2312.03732)
    targets: Literal["all-linear"] | list[str] = "all-linear"  # or names of linear layers
    merge: bool = False  # export the merged model as well


def direction(metric: str) -> Literal["lowest", "highest"] | None:
    """Which value of a held-out metric is the best, by its name; None where that is a matter of opinion."""
    if metric.endswith("/loss"):
        return "lowest"
    return "highest" if metric.endswith(("/rewards/accuracies", "/rewards/margins", "/logps/chosen")) else None


class TrainConfig(Config):
    policy: str  # the model to start from: folder or hub name "org/name@revision"
    starts_at_reference: bool = True  # policy equal to reference at step 1; ref_tolerance is then enforced
    # Root mean square difference of a token's log-prob at step 1, nats; None: by dtype (objective/ref_drift.py).
    ref_tolerance: float | None = Field(None, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of forward and backward passes; what is trained stays float32
    export_dtype: Literal["float32", "bfloat16"] = "float32"

    quantize: Literal["nf4"] | None = None  # of the base under adapters, as the reference was scored (QLoRA)
    lora: Lora | None = None  # None: all weights are trained,
    freeze: tuple[str, ...] = ()  # but those whose names match one of these: "*.mlp.gate.*", say, for routers

    loss: Loss = Sigmoid()  # by name, with its own fields (objective/named/); a list is a weighted sum

    global_batch: Count = 64  # pairs, or labelled completions, an optimizer step, whatever the number of workers
    epochs: float = Field(1.0, gt=0)
    max_steps: Count | None = None  # stop early
    seed: int = Field(0, ge=0)
    shuffle_window: Count = 65536  # pairs: a larger set is shuffled window by window, and read in long stretches
    eval_steps: Count | None = None  # look at the held-out pairs every so many steps; None: at start and end alone
    export: Literal["last", "best"] = "last"  # the policy of which step: the last, or that of the best evaluation
    best_metric: str = Field("eval/loss", pattern="^eval/.")  # by which evaluations are compared: any held-out metric
    best_is: Literal["lowest", "highest"] | None = None  # None: as the metric's name says
    patience: Count | None = None  # evaluations in a row that may bring no gain; then training stops
    max_skipped_steps: int = Field(10, ge=0)  # with a loss or gradient that is not finite; one more ends the run

    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"  # adamw_8bit: moments of a byte each; weights stay float32
    lr: float = Field(5e-7, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    min_lr_fraction: Fraction = 0.0  # of lr, which linear and cosine end at
    warmup_fraction: Fraction | None = 0.1  # of the steps
    warmup_steps: int | None = Field(None, ge=0)  # instead
    weight_decay: float = Field(0.0, ge=0)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = Field(1e-8, gt=0)
    max_grad_norm: float | None = Field(1.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _one_warmup(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("warmup_steps") is None:
            return given
        if given.get("warmup_fraction") is not None:
            raise ValueError("warmup_steps and warmup_fraction say the same thing: leave one out")
        return given | {"warmup_fraction": None}

    @model_validator(mode="after")
    def _fields_that_belong_together(self) -> "TrainConfig":
        if self.warmup_fraction is None and self.warmup_steps is None:
            raise ValueError("warmup_fraction is null, and warmup_steps is not given: warmup_fraction: 0 is no warmup")
        if self.min_lr_fraction and self.schedule == "constant":
            raise ValueError("min_lr_fraction is where schedule linear or cosine ends, and constant stays at lr")
        if self.quantize is not None and self.lora is None:
            raise ValueError(f"quantize: {self.quantize} is of weights that are not trained: set lora as well")
        if self.lora is not None and self.freeze:
            raise ValueError("lora trains nothing but adapters: leave freeze out, or name the layers in lora.targets")
        for field, wanted in (("export: best", self.export == "best"), ("patience", self.patience is not None)):
            if wanted and self.eval_steps is None:
                raise ValueError(f"{field} compares evaluations during training: say how often, with eval_steps")
        if self.looks_for_best and self.best_is is None and direction(self.best_metric) is None:
            raise ValueError(f"whether a low or a high {self.best_metric} is good is not known: give best_is")
        return self

    def advice(self, made: dict[str, Any]) -> list[str]:
        """What a person should know of training on pairs of which `shard` says `made`, its facts."""
        if not (made.get("labelled") and self.loss.labelled):
            return []
        return self.loss.advice(made["desirable"], made["pairs"] - made["desirable"])

    @property
    def trains_all(self) -> bool:
        """No weight is frozen."""
        return self.lora is None and not self.freeze

    @property
    def looks_for_best(self) -> bool:
        """Evaluations are compared, for more than which checkpoints to keep."""
        return self.export == "best" or self.patience is not None

    @property
    def best_is_highest(self) -> bool:
        return (self.best_is or direction(self.best_metric)) == "highest"

    @property
    def unread(self) -> frozenset[str]:
        return frozenset() if self.loss.reference else frozenset({"logprobs"})


class TrainResources(Config):
    workers: Count | Elastic = 1  # a number, or {min: .., max: ..}: then a run goes on without nodes that it loses
    cpus_per_worker: Count = 1
    gpus_per_worker: int = Field(0, ge=0, le=1)
    labels: Labels = {}
    shard_size: Count | None = None  # workers that hold one copy of the weights between them (HSDP); None: all
    context_parallel: Count = 1  # workers that share the tokens of each micro-batch
    memory_gb: float | None = Field(None, gt=0)  # of a worker, or of its GPU, 1e9 bytes: what `plan` compares with
    restarts: int = Field(3, ge=0)  # of all workers, when one dies, with or without its node; preemptions do not count
    resize_seconds: float = Field(60, gt=0)  # how often an elastic run looks for room for more workers
    stall_seconds: float = Field(600, gt=0)  # a step that takes longer is reported with each worker's stack
    checkpoint_steps: Count | None = None  # save every so many steps; None: by time alone
    checkpoint_minutes: float = Field(15, gt=0)
    keep_checkpoints: Count = 2  # the newest, and besides the one of the best evaluation, by train.best_metric
    pause_at: Count | None = None  # stop after this step, with a checkpoint, from which another run goes on
    profile_steps: Count | None = None  # so many steps, after the first two of a run, leave a trace of each worker
    cache: str | None = (
        None  # folder on each node's own disk, for three windows of pairs; None: the system's for scratch
    )
    # What follows trades memory for time; the result does not depend on it but for rounding.
    max_tokens_per_microbatch: Count = 8192
    activation_checkpointing: Literal["none", "selective", "layer"] = "none"  # selective: all but matmuls is recomputed
    compile: bool = False  # each decoder layer, with torch.compile; needs a C++ compiler, and time at the start
    cpu_offload: bool = False  # weights, gradients and optimizer in the memory of the host; for GPUs

    @model_validator(mode="after")
    def _workers_in_multiples(self) -> "TrainResources":
        for count in (self.fewest_workers, self.most_workers):
            if count % self.multiple:
                raise ValueError(
                    f"{count} workers cannot be divided by shard_size {self.shard_size} and context_parallel "
                    f"{self.context_parallel}: give a multiple of {self.multiple}"
                )
        return self

    @property
    def fewest_workers(self) -> int:
        return fewest(self.workers)

    @property
    def most_workers(self) -> int:
        return most(self.workers)

    @property
    def multiple(self) -> int:
        """Of which the number of workers has to be one."""
        return math.lcm(self.shard_size or 1, self.context_parallel)
