"""Where metrics go besides metrics.jsonl: real clients, on stores of this machine."""

from pathlib import Path

import pytest
from conftest import Project
from mlflow.tracking import MlflowClient

from pipeline.recipe.sections import Mlflow, Recipe, Wandb
from pipeline.view.following import trackers
from stages.errors import RecipeError


def test_a_run_in_mlflow_goes_on_when_the_artifact_does(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    step = trained.plan()["train"]
    recipe = Recipe(name="mine", mlflow=Mlflow(uri=tmp_path.as_uri(), experiment="tests"))
    trackers.check(recipe)
    for first in (1, 3):  # the second time it goes on
        (tracker,) = trackers.trackers(recipe, tmp_path / "run.log", step)
        for number in (first, first + 1):
            tracker.log({"loss": 1 / number, "eval/loss": 0.5, "train/a&b/loss": 0.25, "told": "text"}, number)
        tracker.finish()
    client = MlflowClient(tmp_path.as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "loss")] == [
        (number, 1 / number) for number in (1, 2, 3, 4)
    ]
    assert run.data.metrics["train/a_b/loss"] == 0.25
    assert run.data.params["loss.beta"] == "0.1"
    assert run.data.tags["raydpo.train"] == step.fingerprint
    assert run.data.tags["raydpo.pairs"] == step.payload["inputs"]["pairs"]
    assert run.info.status == "FINISHED"


def test_training_goes_on_where_mlflow_does_not_answer(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    recipe = Recipe(name="mine", mlflow=Mlflow(uri=(tmp_path / "store").as_uri()))
    (tracker,) = trackers.trackers(recipe, tmp_path / "run.log", trained.plan()["train"])
    (tmp_path / "store").rename(tmp_path / "gone")
    tracker.log({"loss": 1.0}, 1)
    tracker.log({"loss": 1.0}, 2)
    tracker.finish()
    assert caplog.text.count("mlflow took no metrics at step 1") == 1


def test_a_package_that_is_missing_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RecipeError, match=r"mlflow is not installed\. Install it"):
        trackers.check(Recipe(name="mine", mlflow=Mlflow(uri="sqlite:///mlflow.db")))


def test_a_run_in_wandb_is_that_of_the_artifact(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    step = trained.plan()["train"]
    recipe = Recipe(name="mine", wandb=Wandb(project="tests"))
    (run,) = trackers.trackers(recipe, tmp_path / "run.log", step)
    run.log({"loss": 0.5}, step=1)
    run.finish()
    assert run.id == step.fingerprint[:32]
    assert run.config["loss"]["beta"] == 0.1
    assert run.config["lineage"]["pairs"] == step.payload["inputs"]["pairs"]
    assert list(tmp_path.glob(f"wandb/offline-run-*-{run.id}/*.wandb"))
