"""Where the metrics of training go besides metrics.jsonl, step by step, if the recipe asks for it.

A run there is that of the artifact: one that was stopped and goes on goes on there too.
"""

import importlib.util
import logging
import re
import time
from pathlib import Path
from typing import Any, Protocol

from pipeline.keeping.difference import flat
from pipeline.plan import Step
from pipeline.recipe.sections import Mlflow, Recipe, Wandb
from pipeline.view.effect import read_samples
from stages.errors import RecipeError
from stages.evaluate.evaluation import WRITERS, Evaluation

_log = logging.getLogger("raydpo")


class Tracker(Protocol):
    def log(self, figures: dict[str, Any], step: int) -> None: ...

    def finish(self) -> None: ...


def check(recipe: Recipe) -> None:
    """Raises RecipeError where a package for what the recipe asks for is not installed."""
    if recipe.mlflow and importlib.util.find_spec("mlflow") is None:
        raise RecipeError(
            "mlflow is not installed. Install it (pip install mlflow-skinny), or leave out the section mlflow"
        )


def trackers(recipe: Recipe, log: Path, step: Step) -> list[Tracker]:
    """For the run whose log file is `log`: they write beside it."""
    found: list[Tracker] = []
    if step.stage.name == "train":
        if recipe.wandb:
            found.append(_wandb(recipe.wandb, step, log.parent))
        if recipe.mlflow:
            found.append(OnMlflow(recipe.mlflow, step))
        if recipe.tensorboard:
            found.append(TensorBoard(log.with_suffix("") / step.name))
    return found


def log_samples(recipe: Recipe, trained: Step, evaluated: Step, folder: Path, most: int = 100) -> None:
    """To wandb, if the recipe names it, in the run of the policy: a table of what it writes beside its reference."""
    rows = read_samples(Evaluation(evaluated.folder), most) if recipe.wandb else []
    if not rows or recipe.wandb is None:
        return
    import wandb as client

    table = client.Table(["prompt", *(f"{who}{told}" for who in WRITERS for told in ("", ", reward", ", tokens"))])
    for row in rows:
        table.add_data(row["prompt"], *(row[who][told] for who in WRITERS for told in ("text", "reward", "tokens")))
    try:
        run = _wandb(recipe.wandb, trained, folder)
        run.log({"samples": table})
        run.finish()
    except Exception as error:  # what was made stands
        _log.warning("wandb took no samples: %s", error)


def lineage(step: Step) -> dict[str, str]:
    """Fingerprints of what is trained and of what it is made from."""
    return {step.stage.name: step.fingerprint} | step.payload["inputs"]


def _wandb(wandb: Wandb, step: Step, folder: Path) -> Any:
    import wandb as client

    online = bool(client.api.api_key)
    return client.init(
        project=wandb.project,
        entity=wandb.entity,
        name=step.recipe,
        id=step.fingerprint[:32],
        resume="allow",
        config=step.payload["config"] | {"lineage": lineage(step)} | step.origin,
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


class OnMlflow:
    """A run in an experiment, found again by its tag."""

    def __init__(self, mlflow: Mlflow, step: Step):
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(mlflow.uri)
        known = self._client.get_experiment_by_name(mlflow.experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(mlflow.experiment)
        found = self._client.search_runs([experiment], f"tags.`raydpo.train` = '{step.fingerprint}'")
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            tags = {f"raydpo.{key}": value for key, value in lineage(step).items()}
            self._run = self._client.create_run(experiment, run_name=step.recipe, tags=tags).info.run_id
            fields = [Param(_name(key), str(value)[:500]) for key, value in flat(step.payload["config"])]
            self._client.log_batch(self._run, params=fields)

    def log(self, figures: dict[str, Any], step: int) -> None:
        """Training goes on where the server does not answer; it is told once."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        told = [
            Metric(_name(key), value, now, step) for key, value in figures.items() if isinstance(value, int | float)
        ]
        try:
            if self._client is not None:
                self._client.log_batch(self._run, metrics=told)
        except Exception as error:  # of each kind of store its own
            _log.warning("mlflow took no metrics at step %d, and is not told more in this run: %s", step, error)
            self._client = None

    def finish(self) -> None:
        if self._client is not None:
            self._client.set_terminated(self._run)


def _name(key: str) -> str:
    """As MLflow takes names."""
    return re.sub(r"[^\w\-. /:]", "_", key)
