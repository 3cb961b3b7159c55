"""What a judge says of both texts."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from stages.errors import ContractError, out_of_ray
from stages.evaluate.config import EvaluateResources
from stages.evaluate.evaluation import PLACES, WRITERS
from stages.evaluate.job import Job
from stages.judge.answers import Log, key_of, requests_of
from stages.judge.config import ChatJudge, FunctionJudge
from stages.judge.endpoint import Endpoint
from stages.judge.function import Function
from stages.judge.judges import Answer, Question
from stages.judge.source import modules_of

_FIELD = "evaluate.judge"


def judged(samples: pa.Table, job: Job) -> tuple[pa.Table, dict[str, int]]:
    """SAMPLES with rewards or preferences, null where a call failed; and how often it did, by the kind of fault.

    Raises ContractError where more calls of a chat model failed than the recipe allows.
    """
    judge = job.config.judge
    if judge is None:
        return samples, {}
    prompts, (ours, theirs) = samples["prompt"].to_pylist(), (samples[f"{who}_text"].to_pylist() for who in WRITERS)
    told = [json.dumps(prompt) for prompt in prompts]
    if isinstance(judge, ChatJudge) and judge.mode == "pairwise":
        pairs: list[Question] = list(zip(told, ours, theirs, strict=True))
        found = _asked(judge, [pair for pair in pairs if pair[1] != pair[2]], job)
        orders = [_preferences(found[pair]) if pair in found else (0.5, 0.5) for pair in pairs]
        columns = {f"policy_{place}": [each[n] for each in orders] for n, place in enumerate(PLACES)}
        answers = [found[pair] for pair in pairs if pair in found]
    else:
        scored: dict[str, list[Question]] = {
            who: list(zip(told, texts, strict=True)) for who, texts in zip(WRITERS, (ours, theirs), strict=True)
        }
        found = _asked(judge, [question for own in scored.values() for question in own], job)
        columns = {f"{who}_reward": [found[question].value for question in own] for who, own in scored.items()}
        answers = [found[question] for own in scored.values() for question in own]
    failed = [each.fault for each in answers if each.fault is not None and not each.orders]
    _check(judge, failed, len(answers))
    for name, values in columns.items():
        place = samples.schema.get_field_index(name)
        samples = samples.set_column(place, samples.schema.field(place), pa.array(values, pa.float64()))
    return samples, dict(Counter(fault.partition(":")[0] for fault in failed))


def _preferences(answer: Answer) -> tuple[float | None, float | None]:
    """For the policy's text, from 0 to 1, in both orders."""
    if answer.orders is None:
        return None, None
    return (1 + answer.orders[0]) / 2, (1 + answer.orders[1]) / 2


def _check(judge: str | ChatJudge, failed: Sequence[str], asked: int) -> None:
    """A function fails again as it failed; an endpoint may be back soon, so its failures are not kept for good."""
    if not isinstance(judge, ChatJudge):
        return
    most = 0 if judge.on_fault == "stop" else judge.max_rejected_fraction * asked
    if len(failed) > most:
        raise ContractError(
            f"the judge failed for {len(failed)} of {asked} questions; evaluate.judge.on_fault is {judge.on_fault}, "
            f"and evaluate.judge.max_rejected_fraction {judge.max_rejected_fraction}. The first: {failed[0]}. Its "
            "other answers are kept: run again"
        )


def _asked(judge: str | ChatJudge, questions: Sequence[Question], job: Job) -> dict[Question, Answer]:
    """By a worker, whose environment has the key of an endpoint."""
    ask = ray.remote(num_cpus=1)(_answers)
    if isinstance(judge, ChatJudge):
        arguments: tuple[Any, ...] = judge, {}
    else:
        function = FunctionJudge(name="function", function=judge, folder=job.config.judge_folder)
        arguments = function, modules_of(judge, function.folder, _FIELD)
    with out_of_ray():
        found: dict[Question, Answer] = ray.get(ask.remote(*arguments, job.resources, job.out, questions))
    return found


def _answers(
    judge: FunctionJudge | ChatJudge,
    modules: dict[str, str],
    resources: EvaluateResources,
    out: Path,
    questions: Sequence[Question],
) -> dict[Question, Answer]:
    """What was answered before is not asked again."""
    log = Log(out / ".answers" / "all.jsonl", contradictions=True)
    if new := [each for each in dict.fromkeys(questions) if key_of(each) not in log.known]:
        if isinstance(judge, ChatJudge):
            made = requests_of(out / ".answers")
            Endpoint(judge, resources, made, section=_FIELD).ask(new, log.hear)
        else:
            folder = out / ".judge" / f"{os.uname().nodename}-{os.getpid()}"
            with closing(Function(judge, modules, folder, resources.timeout_seconds, _FIELD)) as function:
                function.ask(new, log.hear)
    return {each: log.known[key_of(each)] for each in questions}


def of(samples: pa.Table, column: str) -> np.ndarray:
    """[n] float64, NaN where there is none."""
    return np.array(samples[column].to_pylist(), np.float64)
