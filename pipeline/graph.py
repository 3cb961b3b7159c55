"""The stages, in order: one row each.

The contract of a stage function, `stages.<name>.run:<name>`:
1. `facts = stage(config, *, <inputs>, out, resources, progress)`; facts are plain data for the manifest. A stage that
   `takes_over` has a further argument, `known`.
2. It reads only its inputs and what its config names, and writes only under `out`.
3. It may be killed at any time; called again with the same `out` it continues and ends with the same parts.
4. It knows nothing of fingerprints, the store, the command line or other stages.
5. It checks its inputs on entry, and its own parts before it renames them.
"""

from dataclasses import dataclass
from typing import Literal

from stages.artifacts import PolicyCheckpoint, PreferencePairs, ReferenceLogprobs
from stages.config import Config
from stages.evaluate.evaluation import Evaluation
from stages.samples import Completions, Triples

Handle = (
    type[Completions] | type[Triples] | type[PreferencePairs] | type[ReferenceLogprobs] | type[PolicyCheckpoint]
    | type[Evaluation]
)  # fmt: skip
Each = Literal["never", "on policy", "always"]


@dataclass(frozen=True)
class Stage:
    name: str
    version: int  # raise it when the same config and inputs would give other results
    inputs: dict[str, str]  # argument -> the stage whose output it is
    output: Handle
    models: tuple[str, ...]  # config fields that name a model, which is the policy of the round before in later ones
    acceptance: tuple[str, ...] = ()  # config fields that decide whether a result stands, not what it is: not hashed
    each_round: Each = "always"  # made anew in each round; on policy: where rounds sample from the policy
    takes_over: bool = False  # it has an argument `known`: artifacts of the same config made of other inputs
    selects: tuple[str, ...] = ()  # config fields in which `known` may differ: what is asked, not what is answered
    optional: bool = False  # a recipe need not have it
    loads: tuple[str, ...] = ()  # of inputs: policies of the last round, each the config's field of that name

    def reads(self, config: Config) -> dict[str, str]:
        """Those of `inputs` that it makes use of with this config."""
        return {argument: made_by for argument, made_by in self.inputs.items() if argument not in config.unread}


SAMPLE = Stage(
    "sample", version=1, inputs={}, output=Completions, models=("models",), acceptance=("max_rejected_fraction",),
    each_round="on policy", takes_over=True, optional=True,
    selects=("source", "subset", "split", "columns", "where", "limit", "num_parts", "max_prompt_length"),
)  # fmt: skip
JUDGE = Stage(
    "judge", version=2, inputs={"completions": "sample"}, output=Triples, models=(),
    acceptance=("max_rejected_fraction", "endpoint", "key_env", "folder"), each_round="on policy", takes_over=True,
    optional=True, selects=("pairing", "min_margin", "seed", "on_fault"),
)  # fmt: skip
SHARD = Stage(
    "shard", version=5, inputs={"triples": "judge"}, output=PreferencePairs, models=(), each_round="on policy"
)
SCORE = Stage(
    "score", version=3, inputs={"pairs": "shard"}, output=ReferenceLogprobs, models=("model",),
    acceptance=("accept",), takes_over=True,
)  # fmt: skip
TRAIN = Stage(
    "train", version=5, inputs={"pairs": "shard", "logprobs": "score"}, output=PolicyCheckpoint, models=("policy",)
)
EVALUATE = Stage(
    "evaluate", version=1, inputs={"pairs": "shard", "logprobs": "score", "policy": "train"}, output=Evaluation,
    models=("policy", "reference"), acceptance=("judge_folder",), each_round="never", optional=True,
    loads=("policy",), takes_over=True, selects=("policy", "loss", "prompts", "num_prompts", "judge", "tie"),
)  # fmt: skip


def named(stage: str, number: int) -> str:
    """A stage in round `number`, from 1: score, score-2, .."""
    return f"{stage}-{number}" if number > 1 else stage


STAGES = {stage.name: stage for stage in (SAMPLE, JUDGE, SHARD, SCORE, TRAIN, EVALUATE)}
