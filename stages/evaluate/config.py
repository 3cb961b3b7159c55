"""What is asked of the policy and its reference, and what a worker may take."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.config import Config, Count, Labels
from stages.engine.config import EngineResources, Sampling
from stages.judge.config import Asking, ChatJudge
from stages.train.objective.named.loss import Loss
from stages.train.objective.named.paired import Sigmoid

Function = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*:[A-Za-z_]\w*$")]


class EvaluateConfig(Config):
    policy: str | None = None  # a folder or hub name; None: what `train` has made
    reference: str  # likewise, never None
    # The recipe's `shard` in short, for a policy that is named: a source, all of whose pairs are held out.
    pairs: str | None = Field(None, exclude=True)
    loss: Loss = Sigmoid()  # of held-out pairs, with its beta for rewards; left out, that of `train`
    dtype: Literal["float32", "bfloat16"] = "float32"  # of both models; left out, that of `train`

    prompts: str | None = None  # a file of them; None: those of the held-out pairs,
    num_prompts: Count = 256  # at most so many, chosen by hash
    sampling: Sampling | None = Sampling()  # what both models write to each; None: nothing
    # "module:function" of the recipe's folder: (prompt, completion) -> a reward, higher is better; or a chat model that
    # compares what both wrote, or gives each a reward
    judge: Function | ChatJudge | None = None
    judge_folder: str = "."  # that folder, which the recipe's place sets
    tie: float = Field(0.0, ge=0)  # rewards that differ by no more are alike

    @model_validator(mode="after")
    def _one_set(self) -> "EvaluateConfig":
        if self.pairs is not None and self.policy is None:
            raise ValueError("pairs is for a policy that is named, and train's policy is asked of shard's pairs")
        return self

    @property
    def samples_itself(self) -> bool:
        """What is drawn is drawn from the models as they are: then the mean log-ratio is their KL."""
        return self.sampling is not None and self.sampling.temperature == 1 and self.sampling.top_p == 1

    @property
    def unread(self) -> frozenset[str]:
        named = {"policy"} if self.policy is not None else set()
        return frozenset(named if self.loss.reference else {"logprobs", *named})


class EvaluateResources(EngineResources, Asking):
    actors: Count = 1  # of each of the two models
    cpus_per_actor: Count = 1
    labels: Labels = {}
    max_tokens_per_batch: Count = 8192  # of a forward pass that computes log-probs: bounds memory
    restarts: int = Field(3, ge=0)  # of an actor that dies
