"""The tree itself: whose `pipeline` is imported, and who may import whom."""

import subprocess
import sys
from pathlib import Path

import pipeline
import stages
from stages.train.config import TrainConfig

ROOT = Path(__file__).parents[1]


def test_both_packages_come_from_this_tree() -> None:
    assert [Path(package.__file__).parents[1] for package in (pipeline, stages)] == [ROOT, ROOT]


def test_the_direction_of_imports() -> None:
    """Among the contracts: training knows neither the scorer nor vllm, and planning is light."""
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_training_has_no_field_for_a_reference_model() -> None:
    """All that could name a model in its config is the policy."""
    text_fields = [name for name, field in TrainConfig.model_fields.items() if field.annotation in (str, str | None)]
    assert text_fields == ["policy", "best_metric"]  # the latter names a figure
