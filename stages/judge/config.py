"""Who judges completions, and which pairs are made of that."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from stages.config import Config, Count, Elastic, Fraction, Labels

Pairing = Literal["best_worst", "best_random", "all"]


class _Asked(Config):
    """What all judges have that are asked."""

    on_fault: Literal["reject", "stop"] = "reject"  # a call that failed, or an answer that is none
    max_rejected_fraction: Fraction = 0.5  # the stage fails when more prompts than this make no pair for faults


class _Paired(Config):
    """What is made of answers."""

    pairing: Pairing = "best_worst"
    min_margin: float = Field(0.0, ge=0)  # scores that differ by no more are a tie
    seed: int = 0  # of best_random


class FunctionJudge(_Paired, _Asked):
    """A Python function of the recipe's folder: (prompt, completion) -> a number, higher is better."""

    name: Literal["function"]
    function: str = Field(pattern=r"^[A-Za-z_]\w*:[A-Za-z_]\w*$")  # "module:function"
    folder: str = "."  # where the module lies; that of the recipe, which sets it


class RewardModel(_Paired, _Asked):
    """A sequence classification model of one label, or of two, of which the second is good."""

    name: Literal["reward_model"]
    model: str  # folder or hub name
    dtype: Literal["float32", "bfloat16"] = "float32"
    context: Count = 2048  # tokens; the start of what is longer is cut off


class ChatJudge(_Asked):
    """A chat model behind an OpenAI-compatible endpoint."""

    name: Literal["llm"]
    endpoint: str = Field(pattern=r"^https?://")  # "http://host:8000/v1"
    model: str  # as the endpoint calls it
    mode: Literal["pairwise", "rubric"] = "pairwise"  # each two in both orders, or each by itself a number
    question: str | None = None  # in place of our own: with {prompt}, and {first} and {second}, or {completion}
    scale: tuple[float, float] = (1.0, 10.0)  # of rubric scores
    answer_tokens: Count = 512
    key_env: str | None = None  # the environment variable that holds the key; the key itself stands nowhere

    @field_validator("scale")
    @classmethod
    def _in_order(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not scale[0] < scale[1]:
            raise ValueError(f"{scale[0]:g} is not below {scale[1]:g}")
        return scale

    @model_validator(mode="after")
    def _asks_for_all(self) -> "ChatJudge":
        wanted = ("{prompt}", "{first}", "{second}") if self.mode == "pairwise" else ("{prompt}", "{completion}")
        missing = [each for each in wanted if self.question is not None and each not in self.question]
        if missing:
            raise ValueError(f"the question of a {self.mode} judge has no {missing[0]}. Put it where that text goes")
        return self


class LlmJudge(_Paired, ChatJudge):
    """One whose verdicts make pairs."""


class DeltaJudge(Config):
    """Nobody is asked: what the first of the models wrote is chosen, what the last one wrote is rejected."""

    name: Literal["delta"]


JudgeConfig = Annotated[FunctionJudge | RewardModel | LlmJudge | DeltaJudge, Field(discriminator="name")]


class Asking(Config):
    """What asking a judge may take, whoever asks."""

    timeout_seconds: float = Field(60, gt=0)  # of a function's call, and of a request
    # Of an endpoint, of all actors together:
    requests_at_a_time: Count = 16
    requests_per_minute: Count | None = None
    retries: int = Field(4, ge=0)  # of a request that got no answer
    max_requests: Count | None = None  # the stage stops when it has made as many: a budget


class JudgeResources(Asking):
    actors: Count | Elastic = 1
    cpus_per_actor: Count = 1
    labels: Labels = {}
    gpus_per_actor: int = Field(0, ge=0, le=1)  # of a reward model
    attempts: Count = 3  # at a part, where the process of the judge dies
    max_tokens_per_batch: Count = 8192  # of a reward model
