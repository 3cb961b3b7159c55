"""What `evaluate` makes of a recipe."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.recipe.load import load
from pipeline.recipe.sections import Recipe
from stages.errors import RecipeError

GOOD: dict[str, Any] = {"model": "m", "shard": {"source": "s.jsonl"}, "score": {}, "train": {}}


def read(folder: Path, **sections: Any) -> Recipe:
    (folder / "r.yaml").write_text(yaml.safe_dump(sections))
    (folder / "c.yaml").write_text("root: here\n")
    return load(folder / "r.yaml", folder / "c.yaml", [])[0]


def test_it_follows_from_the_other_stages(tmp_path: Path) -> None:
    train = {"loss": {"name": "ipo", "beta": 0.3}, "dtype": "bfloat16"}
    found = read(tmp_path, **GOOD | {"score": {"model": "r"}, "train": train}, evaluate={"judge": "mood:of"}).evaluate
    assert found is not None
    assert (found.policy, found.reference, found.loss.name, found.loss.beta) == (None, "r", "ipo", 0.3)
    assert (found.dtype, found.judge_folder) == ("bfloat16", str(tmp_path.resolve()))
    own = read(tmp_path, **GOOD, evaluate={"loss": "hinge", "reference": "q", "dtype": "float32"}).evaluate
    assert own is not None
    assert (own.loss.name, own.reference, own.dtype) == ("hinge", "q", "float32")
    assert read(tmp_path, **GOOD).evaluate is read(tmp_path, **GOOD, evaluate=None).evaluate is None


def test_a_policy_that_is_named_is_not_trained(tmp_path: Path) -> None:
    both = {"policy": "p", "reference": "r"}
    alone = read(tmp_path, evaluate=both | {"prompts": "q.txt"})
    assert (alone.shard, alone.score, alone.train) == (None, None, None)
    paired = read(tmp_path, evaluate=both | {"pairs": "s.jsonl", "dtype": "bfloat16"})
    assert paired.shard is not None
    assert paired.score is not None
    assert (paired.shard.source, paired.shard.tokenizer, paired.shard.eval_fraction) == ("s.jsonl", "p", 1.0)
    assert (paired.score.model, paired.score.dtype, paired.train) == ("r", "bfloat16", None)
    beside = read(tmp_path, model="m", shard={"source": "s.jsonl"}, evaluate={"policy": "p"})
    assert beside.score is not None
    assert beside.evaluate is not None
    assert (beside.score.model, beside.evaluate.reference, beside.train) == ("m", "m", None)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (GOOD | {"evaluate": {"policy": "p"}}, r"evaluate\.policy names the policy, and train is how one is made"),
        (
            {"evaluate": {"policy": "p", "reference": "r"}},
            r"evaluate has nothing to ask the models\. Name evaluate\.prom",
        ),
        ({"evaluate": {"policy": "p", "prompts": "q"}}, r"model: Field required"),
        (GOOD | {"evaluate": {"pairs": "s"}}, r"pairs is for a policy that is named"),
        (GOOD | {"evaluate": {"loss": "kto"}}, r"evaluate\.loss kto and train\.loss sigmoid are not both of pairs"),
        (GOOD | {"train": {"lora": {}}, "evaluate": {}}, r"evaluate asks an engine .* Set train\.lora\.merge: true"),
        (GOOD | {"evaluate": {"sampling": {"num_sample": 3}}}, r"num_sample: no such key; did you mean num_samples\?"),
        (GOOD | {"evaluate": {"judge": "mood.of"}}, r"evaluate\.judge: String should match .*given: 'mood\.of'"),
        (
            GOOD | {"evaluate": {"judge": {"name": "llm", "endpoint": "host"}}},
            r"(?s)evaluate\.judge\.endpoint: .*evaluate\.judge\.model: Field required",
        ),
        (
            {"model": "m", "shard": {"source": "s"}, "evaluate": {"policy": "p", "pairs": "s"}},
            r"evaluate\.pairs is shard\.source, all of it held out",
        ),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, **sections)
