"""What `evaluate` makes of a recipe: which stages it has, and what does not go together."""

from typing import Any

from pipeline.recipe.sections import Recipe
from stages.errors import RecipeError

MODELS = {"shard": "tokenizer", "score": "model", "train": "policy", "evaluate": "reference"}


def stages_of(what: dict[str, Any]) -> list[str]:
    """Which stages a recipe has: all, but `evaluate` where it is not asked for.

    Where `evaluate` names its policy, none is trained, and its pairs are sharded and scored if there are any.
    """
    given = what.get("evaluate")
    if not isinstance(given, dict) or given.get("policy") is None:
        return [section for section in MODELS if section != "evaluate" or given is not None]
    for section in ("train", "rounds"):
        if section in what:
            raise RecipeError(
                f"evaluate.policy names the policy, and {section} is how one is made: leave one of the two out"
            )
    if (pairs := given.get("pairs")) is not None:
        if "shard" in what:
            raise RecipeError("evaluate.pairs is shard.source, all of it held out: leave it or shard out")
        what["shard"] = {"source": pairs, "tokenizer": given["policy"], "eval_fraction": 1.0}
    if "shard" not in what:
        what.pop("score", None)
        return ["evaluate"]
    if (reference := given.get("reference")) is not None:
        score = what.get("score")
        own = {"model": reference, "dtype": given.get("dtype", "float32")}
        what["score"] = own | (score if isinstance(score, dict) else {})
    return ["shard", "score", "evaluate"]


def check_evaluated(recipe: Recipe) -> None:
    train, evaluate = recipe.train, recipe.evaluate
    if evaluate is None:
        return
    lora = train.lora if train is not None else None
    if evaluate.sampling is not None and lora is not None and not lora.merge:
        raise RecipeError(
            "evaluate asks an engine what the policy writes, and with train.lora only its adapter is exported. Set "
            "train.lora.merge: true, or evaluate.sampling: null to look at held-out pairs alone"
        )
    if recipe.shard is None and (evaluate.prompts is None or evaluate.sampling is None):
        raise RecipeError(
            "evaluate has nothing to ask the models. Name evaluate.prompts, evaluate.pairs or shard.source"
        )
    if train is not None and evaluate.loss.labelled != train.loss.labelled:
        raise RecipeError(
            f"evaluate.loss {evaluate.loss.name} and train.loss {train.loss.name} are not both of pairs, or both of "
            "labelled completions: leave evaluate.loss out"
        )
