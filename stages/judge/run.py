"""The judge stage: a pool of actors, each with one judge, makes triples of parts of completions."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.errors import ContractError, RecipeError
from stages.judge.config import DeltaJudge, FunctionJudge, JudgeConfig, JudgeResources
from stages.judge.part_judge import Job, PartJudge, beside, judge_starts, kind_of
from stages.judge.source import modules_of
from stages.names import part_name
from stages.pool.actors import follow, reports
from stages.progress import Progress, Silent
from stages.samples import Completions, Triples


def judge(
    config: JudgeConfig,
    *,
    completions: Completions,
    out: Path,
    resources: JudgeResources,
    progress: Progress | None = None,
    known: Sequence[Triples] = (),
) -> dict[str, Any]:
    """Write the Triples of `completions` under `out`, skip parts that are there, and return the facts of the work.

    `known`: what the same judge has said before; its answers are taken over. Raises RecipeError for a judge that cannot
    serve, ContractError where too few prompts make a pair.
    """
    made = completions.manifest.facts
    if isinstance(config, DeltaJudge) and made["num_models"] < 2:
        raise RecipeError("judge.name delta compares the first of sample.models with the last: name two or more")
    modules = modules_of(config.function, config.folder) if isinstance(config, FunctionJudge) else {}
    taken = [(each, each.manifest.facts["num_parts"]) for each in known]
    job = Job(config, resources, completions, made["num_parts"], modules, taken, out)
    parts = [part_name(number) for number in range(job.num_parts)]
    todo = [part for part in parts if not _is_whole(out, part)]
    judge_starts(job).forget()  # of an earlier run
    found = reports(todo, PartJudge, job, resources)
    follow(found, len(parts), len(todo), resources.actors, ("prompts",), progress or Silent())
    facts, aside = _facts(parts, config, out)
    _check(facts, aside, config, out)
    return facts | {"num_parts": job.num_parts, "chat": made["chat"]}


def _is_whole(out: Path, part: str) -> bool:
    return all((out / beside(part, what)).exists() for what in ("part", "answers", "rejects"))


def _facts(parts: Sequence[str], config: JudgeConfig, out: Path) -> tuple[dict[str, Any], pa.Table]:
    """What the files hold, and what the reports of the work say that was done for them; and all prompts set aside."""
    triples, answers, aside = (
        pa.concat_tables([pq.read_table(out / beside(part, what), partitioning=None) for part in parts])
        for what in ("part", "answers", "rejects")
    )
    told = [json.loads(path.read_text()) for path in sorted((out / ".reports").glob("*.json"))]
    faults = Counter(kind_of(fault) for fault in answers["fault"].to_pylist() if fault)
    margin = pc.mean(triples["margin"])
    return {
        "prompts": len({*triples["prompt_id"].to_pylist(), *aside["prompt_id"].to_pylist()}),
        "triples": len(triples),
        "judge": config.name,
        "dropped": dict(sorted(Counter(aside["reason"].to_pylist()).items())),  # prompts
        "questions": len(answers),
        "faults": dict(sorted(faults.items())),  # of them
        "asked": sum(each["asked"] for each in told),
        "requests": sum(each["requests"] for each in told),
        "taken_over": sum(each["questions"] - each["asked"] for each in told),
        "graded": margin.is_valid,
        "mean_margin": margin.as_py(),
    }, aside


def _check(facts: dict[str, Any], aside: pa.Table, config: JudgeConfig, out: Path) -> None:
    most = 1.0 if isinstance(config, DeltaJudge) else config.max_rejected_fraction
    failed = facts["dropped"].get("fault", 0)
    if failed > most * facts["prompts"] or not facts["triples"]:
        counts = ", ".join(f"{number} {reason}" for reason, number in facts["dropped"].items())
        first = next((each for each in aside.to_pylist() if each["reason"] == "fault"), None) or aside.to_pylist()[0]
        raise ContractError(
            f"{len(aside)} of {facts['prompts']} prompts make no pair ({counts}); judge.max_rejected_fraction for "
            f"faults is {most}. The first: {first['reason']}: {first['detail']}. All stand in "
            f"{out}/rejects-*.parquet. Mend the judge, or sample more, or raise it; to ask again, delete the parts"
        )
