"""What a judge says of both texts."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from stages.errors import out_of_ray
from stages.evaluate.evaluation import WRITERS
from stages.evaluate.job import Job
from stages.judge.config import FunctionJudge
from stages.judge.judges import Answer, Function, Question
from stages.judge.source import modules_of


def judged(samples: pa.Table, job: Job) -> tuple[pa.Table, dict[str, int]]:
    """SAMPLES with rewards, null where a call failed; and how often it did, by the kind of fault."""
    config = job.config
    if config.judge is None:
        return samples, {}
    asked = FunctionJudge(name="function", function=config.judge, folder=config.judge_folder)
    questions = {
        writer: [(json.dumps(prompt), text) for prompt, text in zip(*_texts(samples, writer), strict=True)]
        for writer in WRITERS
    }
    ask = ray.remote(num_cpus=1)(_answers)
    every = [question for own in questions.values() for question in own]
    with out_of_ray():
        found = ray.get(ask.remote(asked, modules_of(asked.function, asked.folder), job.out / ".judge", every))
    faults: Counter[str] = Counter()
    for writer, own in questions.items():
        answers = [found[question] for question in own]
        faults.update(fault.partition(":")[0] for _, fault in answers if fault is not None)
        place = samples.schema.get_field_index(f"{writer}_reward")
        values = pa.array([value for value, _ in answers], pa.float64())
        samples = samples.set_column(place, samples.schema.field(place), values)
    return samples, dict(faults)


def _texts(samples: pa.Table, writer: str) -> tuple[list[str], list[str]]:
    return samples["prompt"].to_pylist(), samples[f"{writer}_text"].to_pylist()


def _answers(
    judge: FunctionJudge, modules: dict[str, str], folder: Path, questions: list[Question]
) -> dict[Question, tuple[float | None, str | None]]:
    """In a process of its own, as it is somebody's code."""
    found: dict[Any, tuple[float | None, str | None]] = {}

    def heard(question: Question, answer: Answer) -> None:
        found[question] = answer.value, answer.fault

    Function(judge, modules, folder).ask(list(dict.fromkeys(questions)), heard)
    return found


def of(samples: pa.Table, writer: str) -> np.ndarray:
    """[n] float64, NaN where there is none."""
    return np.array(samples[f"{writer}_reward"].to_pylist(), np.float64)
