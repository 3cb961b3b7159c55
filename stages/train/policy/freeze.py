"""Weights that are not trained, by patterns of their names."""

from fnmatch import fnmatchcase

from transformers import PreTrainedModel

from stages.errors import RecipeError


def freeze(causal_lm: PreTrainedModel, patterns: tuple[str, ...]) -> None:
    """Freeze every weight whose name, as the model has it, a pattern matches: `*.mlp.gate.*`.

    Raises RecipeError where a pattern matches no weight, and where none is left to train.
    """
    weights = dict(causal_lm.named_parameters())
    for pattern in patterns:
        matched = [name for name in weights if fnmatchcase(name, pattern)]
        if not matched:
            layers = [name for name in weights if ".0." in name] or list(weights)
            raise RecipeError(f"train.freeze: no weight's name matches {pattern}; there are {', '.join(layers)}")
        for name in matched:
            weights[name].requires_grad_(False)
    if not any(weight.requires_grad for weight in weights.values()):
        raise RecipeError(f"train.freeze: {', '.join(patterns)} leaves no weight to train")
