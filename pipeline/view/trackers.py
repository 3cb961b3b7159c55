"""Where the metrics of training go besides metrics.jsonl, step by step, if the recipe asks for it."""

from pathlib import Path
from typing import Any, Protocol

from pipeline.recipe.sections import Recipe, Wandb


class Tracker(Protocol):
    def log(self, figures: dict[str, Any], step: int) -> None: ...

    def finish(self) -> None: ...


def trackers(recipe: Recipe, log: Path, stage: str) -> list[Tracker]:
    """For the run whose log file is `log`: they write beside it."""
    found: list[Tracker] = []
    if stage.startswith("train"):
        if recipe.wandb:
            found.append(_wandb(recipe.wandb, recipe.name, log.parent))
        if recipe.tensorboard:
            found.append(TensorBoard(log.with_suffix("") / stage))
    return found


def _wandb(wandb: Wandb, run_name: str, folder: Path) -> Any:
    import wandb as client

    online = bool(client.api.api_key)
    return client.init(
        project=wandb.project,
        entity=wandb.entity,
        name=run_name,
        dir=folder,
        mode="online" if online else "offline",
    )


class TensorBoard:
    """Event files in `folder`."""

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, figures: dict[str, Any], step: int) -> None:
        for name, value in figures.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()
