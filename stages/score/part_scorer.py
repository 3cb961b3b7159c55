"""The callable of the actor pool: a part of pairs goes in, a part of log-probs is on disk."""

import json
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from stages import digests, schema
from stages.artifacts import PreferencePairs, check_covers
from stages.pool.attempts import Attempts
from stages.pool.careful import computed, started
from stages.score.config import ScoreConfig, ScoreResources
from stages.score.known import KnownLogprobs
from stages.score.reference import merged, reference_of
from stages.score.vllm_scorer import VllmScorer

if TYPE_CHECKING:
    from stages.score.torch_scorer import TorchScorer


@dataclass(frozen=True)
class Job:
    config: ScoreConfig
    resources: ScoreResources
    pairs: PreferencePairs
    known: KnownLogprobs
    out: Path
    longest: int  # tokens of the longest sequence


def engine_starts(job: Job) -> Attempts:
    """Those that failed since the last one that did not, of all actors; actors that start right now are among them."""
    return Attempts(job.out / ".attempts" / "engine", job.resources.attempts)


def reports_of(out: Path) -> Path:
    """The folder of a report for each part, so that the facts cover all runs that an artifact took to make."""
    return out / ".reports"


class PartScorer:
    """Its state is one engine; its effect is one part on disk a call.

    An actor has two calls at a time: while the engine works on one part, the next one is read, and the one before is
    written. The engine has a thread of its own, in which it is made and asked.
    """

    def __init__(self, job: Job):
        self.job = job
        self.num_parts = len(job.pairs.parts)
        self._engine_thread = ThreadPoolExecutor(1, "engine")

    @cached_property
    def scorer(self) -> "TorchScorer | VllmScorer":
        """The engine, made at the first pairs to score: an error of __init__ would reach the driver as mere text."""
        job = self.job
        return started(engine_starts(job), job.resources.actors, job.config.model, lambda: _engine(job))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score the part that `batch` names, and report in one row.

        Pairs that cannot be scored are set aside with their error. Raises ContractError where that does not help.
        """
        part = batch["part"][0].as_py()
        pairs = self.job.pairs.read(part)
        known = self.job.known.find(part, self.num_parts, pairs)
        new = pairs.filter(pc.invert(pc.is_in(pairs["pair_id"], known["pair_id"])))
        attempts = Attempts(self.job.out / ".attempts" / part, self.job.resources.attempts)
        made, seconds, loading = schema.logprobs_schema(pairs).empty_table(), 0.0, 0.0
        if len(new):
            made, seconds, loading = self._engine_thread.submit(self._timed_score, new, attempts, part).result()
        scored = _in_order(pa.concat_tables([known, made]), pairs)
        check_covers(scored, pairs, f"the log-probs just scored for {part}")
        report = {
            "part": part,
            "actor": f"{os.uname().nodename}:{os.getpid()}",
            "pairs": len(pairs),
            "scored": len(new),
            "tokens": count_tokens(new),
            "unscored": len(scored) - scored["error"].null_count,
            "path": self.scorer.path if len(new) else "taken over",
            "reference": reference_of(pairs, scored),
            "seconds": seconds,  # of the engine,
            "loading": loading,  # its start among them
            "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,  # of the host, so far
        }
        if len(new) and (gpus := _gpu_memory()):
            report["peak_gpu_memory_gb"] = gpus / 1e9
        reports = reports_of(self.job.out)
        reports.mkdir(exist_ok=True)
        (reports / f"{part}.json").write_text(json.dumps(report))
        del report["reference"]  # for the facts, not for the driver's progress
        schema.write_part(scored, self.job.out / part)
        digests.note(self.job.out / part, self.job.out)
        attempts.forget()
        return pa.Table.from_pylist([report])

    def _timed_score(self, pairs: pa.Table, attempts: Attempts, part: str) -> tuple[pa.Table, float, float]:
        """Rows of log-probs; the seconds of it, and those among them of the engine's start."""
        began = time.perf_counter()
        _ = self.scorer
        loading = time.perf_counter() - began
        return self._score(pairs, attempts, part), time.perf_counter() - began, loading

    def _score(self, pairs: pa.Table, attempts: Attempts, part: str) -> pa.Table:
        """Rows of log-probs for `pairs`, all in one go: so the values do not depend on what failed before."""
        scorer = self.scorer

        def scored(rows: pa.Table) -> pa.Table:
            return schema.logprobs_table(rows, scorer.token_logps(rows) if len(rows) else [])

        found = computed(pairs, scored, attempts, part, "cluster.score")
        return pa.concat_tables([found.values, schema.unscored_table(found.poisonous, found.errors)])


def _engine(job: Job) -> "TorchScorer | VllmScorer":
    if job.config.backend == "vllm":
        return VllmScorer(job.config, job.resources, job.longest)
    # Not at the top: it takes seconds, and the driver, which names this module, has no use for it.
    from stages.score.torch_scorer import TorchScorer

    return TorchScorer(job.config, job.resources, job.longest)


def _in_order(logprobs: pa.Table, pairs: pa.Table) -> pa.Table:
    """The rows of `logprobs` in the order of `pairs`."""
    return logprobs.take(pc.index_in(pairs["pair_id"], logprobs["pair_id"].combine_chunks())).combine_chunks()


def _gpu_memory() -> int:
    """Bytes that this process has allocated on its GPUs at most, all together; not those of vLLM's own processes."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))


def count_tokens(pairs: pa.Table) -> int:
    """As an engine reads them: the prompt once a side."""
    prompt, first, second = schema.num_tokens(pairs)
    return int((2 * prompt + first + second).sum())


def reported(out: Path) -> list[dict[str, Any]]:
    """The reports under `out`, part by part."""
    return [json.loads(path.read_text()) for path in sorted(reports_of(out).glob("*.json"))]


def facts_of(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What they add up to."""
    actors: dict[str, dict[str, float]] = {}
    for report in reports:
        figures = actors.setdefault(
            report["actor"], dict.fromkeys(("parts", "pairs", "tokens", "seconds", "loading"), 0)
        )
        figures["parts"] += 1
        for key in ("peak_memory_gb", "peak_gpu_memory_gb"):
            if key in report:
                figures[key] = max(report[key], figures.get(key, 0.0))
        figures["pairs"] += report["scored"]
        for key in ("tokens", "seconds", "loading"):
            figures[key] += report[key]
    return {
        "scored": sum(report["scored"] for report in reports),
        "taken_over": sum(report["pairs"] - report["scored"] for report in reports),
        "paths": sorted({report["path"] for report in reports}),
        "actors": actors,
        "reference": merged([report["reference"] for report in reports]),
    }
