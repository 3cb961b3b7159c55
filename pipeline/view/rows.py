"""`raydpo show` of rows: pairs as the model sees them, rows that made none, and what both models write."""

from rich.console import Console

from pipeline.plan import State, Step
from pipeline.store import Store
from stages.artifacts import PreferencePairs
from stages.errors import MissingArtifact, RecipeError
from stages.evaluate.evaluation import Evaluation
from stages.shard.config import ShardConfig


def show_samples(steps: list[Step], count: int, as_json: bool) -> None:
    """Of the first `count` prompts. Raises RecipeError or MissingArtifact where there are none."""
    from pipeline.view import effect

    step = _step(steps, "evaluate", "add evaluate: {}")
    if step.state != State.HIT:
        raise MissingArtifact(
            f"there are no samples yet: evaluate is a {step.state}. Make them: raydpo run RECIPE --only evaluate"
        )
    shown = effect.read_samples(Evaluation(step.folder), count)
    if as_json:
        print(effect.as_json(shown))
    else:
        effect.print_samples(shown, step.manifest.facts, Console())


def show_pairs(steps: list[Step], store: Store, pairs: int | None, rejects: bool, as_json: bool) -> None:
    """As the model sees them, and rows that made none. Raises RecipeError or MissingArtifact where there are none."""
    from pipeline.view import pairs as view  # it decodes, with transformers

    step = _step(steps, "shard", "it names no pairs")
    console, config = Console(), step.config
    assert isinstance(config, ShardConfig)
    made = step.state == State.HIT
    # A stage that stopped for its rejects has left them where it was at work, and these say why there are no pairs.
    folder = step.folder if made else store.draft(step.stage.name, step.fingerprint)
    shown = view.read_pairs(PreferencePairs(folder), pairs, config.tokenizer) if pairs and made else None
    aside = None
    if rejects and (made or not pairs or (folder / "rejects.parquet").exists()):
        aside = view.read_rejects(PreferencePairs(folder), pairs or 5)
    if as_json and (shown is not None or aside is not None):
        print(view.as_json(shown, aside))
    elif not as_json:
        view.print_pairs(shown or [], console)
        if aside:
            view.print_rejects(aside, console)
    if pairs and not made:
        raise MissingArtifact(
            f"there are no pairs yet: shard is a {step.state}. Make them: raydpo run RECIPE --only shard"
        )


def _step(steps: list[Step], stage: str, hint: str) -> Step:
    for step in steps:
        if step.stage.name == stage:
            return step
    raise RecipeError(f"this recipe has no {stage}: {hint}")
