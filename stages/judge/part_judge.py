"""The callable of the actor pool: a part of completions goes in, a part of triples is on disk."""

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages import digests, schema
from stages.config import most
from stages.errors import ContractError, is_for_users
from stages.judge.answers import Log, key_of, read_answers, requests_of
from stages.judge.config import FunctionJudge, JudgeConfig, JudgeResources, LlmJudge, RewardModel
from stages.judge.endpoint import Endpoint
from stages.judge.function import Function
from stages.judge.judges import Classifier, Judge, Question
from stages.judge.pairing import distinct, pairs_of, questions_of
from stages.names import number_of
from stages.pool.alike import alike
from stages.pool.attempts import Attempts
from stages.pool.careful import started
from stages.samples import JUDGED_OUT, TRIPLES, Completions, Triples, prompts_of


@dataclass(frozen=True)
class Job:
    config: JudgeConfig
    resources: JudgeResources
    completions: Completions
    num_parts: int
    modules: dict[str, str]  # of a function
    known: Sequence[tuple[Triples, int]]  # by the same judge, and how many parts they have
    out: Path


def judge_starts(job: Job) -> Attempts:
    return Attempts(job.out / ".attempts" / "judge", job.resources.attempts)


def logs_of(out: Path) -> Path:
    return out / ".answers"


def beside(part: str, what: str) -> str:
    """`answers` or `rejects` of the same number."""
    return part.replace("part", what)


class PartJudge:
    def __init__(self, job: Job):
        self.job = job
        self._thread = ThreadPoolExecutor(1, "judge")

    @cached_property
    def judge(self) -> Judge:
        """Made at the first question: an error of __init__ would reach the driver as mere text."""
        job = self.job
        config = job.config
        if isinstance(config, FunctionJudge):
            folder = job.out / ".function" / f"{os.uname().nodename}-{os.getpid()}"
            return Function(config, job.modules, folder, job.resources.timeout_seconds)
        if isinstance(config, LlmJudge):
            return Endpoint(config, job.resources, requests_of(logs_of(job.out)), most(job.resources.actors))
        assert isinstance(config, RewardModel)
        budget = job.resources.max_tokens_per_batch
        return started(
            judge_starts(job),
            job.resources.actors,
            config.model,
            lambda: Classifier(config, job.resources.gpus_per_actor, budget),
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Judge the part that `batch` names, and report in one row. Raises ContractError for a fault where the recipe
        says so, RecipeError where the budget is spent.
        """
        return self._thread.submit(self._judged, batch["part"][0].as_py()).result()

    def _judged(self, part: str) -> pa.Table:
        job, began = self.job, time.perf_counter()
        number = number_of(part)
        prompts = list(prompts_of(job.completions.of_all_models(number)))
        asked = [
            question
            for prompt, rows in prompts
            for question in questions_of(prompt["prompt"], distinct(rows), job.config)
        ]
        log = Log(logs_of(job.out) / f"{part}.jsonl")
        self._take_over(number, asked, log)
        new = [question for question in asked if key_of(question) not in log.known]
        if new:
            self._ask(new, log, part)
        triples, aside = self._paired(prompts, log)
        faults = Counter(kind_of(fault) for key in {*map(key_of, asked)} if (fault := log.known[key].fault))
        if faults and job.config.on_fault == "stop":  # type: ignore[union-attr]
            told = next(fault for each in asked if (fault := log.known[key_of(each)].fault))
            raise ContractError(
                f"the judge failed for {sum(faults.values())} of {len(asked)} questions of {part}, and judge.on_fault "
                f"is stop. The first: {told}. Its other answers are kept: run again, or set judge.on_fault: reject"
            )
        report = {
            "part": part,
            "actor": f"{os.uname().nodename}:{os.getpid()}",
            "prompts": len(prompts),
            "questions": len(asked),
            "asked": len(log.requests),
            "requests": sum(log.requests.values()),
            "triples": len(triples),
            "unscored": sum(faults.values()),
            "seconds": time.perf_counter() - began,
        }
        (job.out / ".reports").mkdir(parents=True, exist_ok=True)
        (job.out / ".reports" / f"{part}.json").write_text(json.dumps(report))
        log.write(asked, job.out / beside(part, "answers"))
        schema.write_part(aside, job.out / beside(part, "rejects"))
        schema.write_part(triples, job.out / part)
        digests.note(job.out / part, job.out)
        return pa.Table.from_pylist([report])

    def _ask(self, questions: list[Question], log: Log, part: str) -> None:
        """A judge that raises what no one can mend takes its process with it: Ray starts both anew, some times."""
        attempts = Attempts(self.job.out / ".attempts" / part, self.job.resources.attempts)
        if len(said := attempts.failed("whole")) >= attempts.limit:
            raise ContractError(f"the judge died {len(said)} times at {part}: {said[-1]}. See the log of its actor")
        try:
            with attempts.attempt("whole"):
                self.judge.ask(list(dict.fromkeys(questions)), log.hear)
        except Exception as error:
            if is_for_users(error):
                attempts.forget()
            raise

    def _take_over(self, number: int, asked: list[Question], log: Log) -> None:
        for triples, others in self.job.known:
            missing = [key for each in asked if (key := key_of(each)) not in log.known]
            if not missing:
                return
            for other in alike(number, self.job.num_parts, others):
                path = triples.folder / f"answers-{other:05d}.parquet"
                if path.exists():
                    log.known |= read_answers(path, missing)

    def _paired(self, prompts: list[Any], log: Log) -> tuple[pa.Table, pa.Table]:
        triples, aside = [], []
        for prompt, rows in prompts:
            found = pairs_of(
                prompt["prompt_id"], prompt["prompt"], rows, self.job.config, lambda q: log.known[key_of(q)]
            )
            if not found.pairs:
                aside.append({"prompt_id": prompt["prompt_id"], "reason": found.reason, "detail": found.detail})
            for chosen, rejected, margin in found.pairs:
                triples.append(_triple(prompt, chosen, rejected, margin))
        return pa.Table.from_pylist(triples, schema=TRIPLES), pa.Table.from_pylist(aside, schema=JUDGED_OUT)


def _triple(
    prompt: dict[str, Any], chosen: dict[str, Any], rejected: dict[str, Any], margin: float | None
) -> dict[str, Any]:
    """A prompt of messages has completions of messages, and all is JSON text; else all is plain text."""
    asked, sides = prompt["prompt"], [chosen["text"], rejected["text"]]
    if not isinstance(asked, str):
        asked = json.dumps(asked, ensure_ascii=False)
        sides = [json.dumps([{"role": "assistant", "content": text}], ensure_ascii=False) for text in sides]
    return {
        "prompt_id": prompt["prompt_id"],
        "prompt": asked,
        "chosen": sides[0],
        "rejected": sides[1],
        "margin": margin,
        "chosen_model": chosen["model"],
        "rejected_model": rejected["model"],
        "chosen_finish": chosen["finish"],
        "rejected_finish": rejected["finish"],
    }


def kind_of(fault: str) -> str:
    return fault.partition(":")[0]
