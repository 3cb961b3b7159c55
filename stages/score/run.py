"""The score stage: a pool of actors, each with one engine, works through the parts of the pairs."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import schema
from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.errors import ContractError, RecipeError, out_of_ray
from stages.model_files import adapter_at, check_fits
from stages.pool.actors import follow, reports
from stages.progress import Progress, Silent
from stages.score.calibration import calibrate
from stages.score.config import ScoreConfig, ScoreResources
from stages.score.known import KnownLogprobs
from stages.score.part_scorer import Job, PartScorer, engine_starts, facts_of, reported
from stages.storage import folders


def score(
    config: ScoreConfig,
    *,
    pairs: PreferencePairs,
    out: Path,
    resources: ScoreResources,
    progress: Progress | None = None,
    known: Sequence[ReferenceLogprobs] = (),
) -> dict[str, Any]:
    """Write the ReferenceLogprobs of `pairs` under `out`, skip parts that are there, and return the facts of the work.

    `known`: what the same reference has scored before; its values are taken over. Raises RecipeError where the model
    cannot take the pairs' length, or is an adapter for vLLM; ContractError where a part of them is damaged, or too many
    pairs cannot be scored.
    """
    made = pairs.manifest.facts
    if config.backend == "vllm" and adapter_at(config.model):
        raise RecipeError(
            f"score.model {config.model} is an adapter, which only score.backend: torch merges into its model. Set "
            "that, or merge it with peft, and name the merged model"
        )
    check_fits(config.model, made["longest"], made.get("largest_id", 0))
    job = Job(config, resources, pairs, KnownLogprobs(known), out, made["longest"])
    todo = [part for part in pairs.parts if not (out / part).exists()]
    engine_starts(job).forget()  # of an earlier run
    _follow(job, todo, progress or Silent())
    told = reported(out)
    unscored = _write_rejects(pairs, out, {each["part"] for each in told if not each["unscored"]})
    _check_unscored(unscored, made["pairs"], config, out)
    train = unscored["split"].to_pylist().count("train")
    return {
        "pairs": made["pairs"],
        "tokens": made["tokens"],
        "bytes_per_pair": round(sum((out / part).stat().st_size for part in pairs.parts) / max(made["pairs"], 1), 1),
        "backend": config.backend,
        "unscored": {"train": train, "eval": len(unscored) - train},
        **facts_of(told),
        **({"calibration": _calibration(job)} if config.accept.calibration_pairs else {}),
    }


def _follow(job: Job, todo: list[str], progress: Progress) -> None:
    """Let the pool score the parts `todo`, and tell of it."""
    # The largest first, so that no actor is left alone with a long part at the end.
    sizes = folders.sizes(job.pairs.folder)
    found = reports(sorted(todo, key=lambda part: -sizes[part]), PartScorer, job, job.resources)
    follow(found, len(job.pairs.parts), len(todo), job.resources.actors, ("pairs", "tokens"), progress)


def _calibration(job: Job) -> dict[str, Any]:
    with out_of_ray():
        return calibrate(job.config, job.pairs, ReferenceLogprobs(job.out), job.resources, job.longest)


def _write_rejects(pairs: PreferencePairs, out: Path, whole: Collection[str]) -> pa.Table:
    """Write `rejects.parquet`: every pair that has an error instead of log-probs. Returns it, with the pairs' split.

    Parts that are `whole`, as is said of them, need not be opened.
    """
    tables = [schema.UNSCORED.append(pa.field("split", pa.string())).empty_table()]
    for part in pairs.parts:
        if part in whole:
            continue
        errors = pq.read_table(out / part, columns=["error"], partitioning=None)["error"]
        if errors.null_count == len(errors):
            continue
        rows = pairs.read(part).select(["pair_id", "split"]).append_column("error", errors)
        rows = rows.filter(pc.is_valid(errors))
        tables.append(rows.append_column("part", pa.array([part] * len(rows))).select(tables[0].column_names))
    unscored = pa.concat_tables(tables)
    schema.write_part(unscored.select(schema.UNSCORED.names), out / "rejects.parquet")
    return unscored


def _check_unscored(unscored: pa.Table, pairs: int, config: ScoreConfig, out: Path) -> None:
    if len(unscored) > config.accept.max_rejected_fraction * pairs:
        first = unscored.slice(0, 1).to_pylist()[0]
        raise ContractError(
            f"{len(unscored)} of {pairs} pairs could not be scored, more than score.accept.max_rejected_fraction "
            f"{config.accept.max_rejected_fraction} allows. The first: pair {first['pair_id']} of {first['part']}, "
            f"{first['error']}. All stand in {out / 'rejects.parquet'}. Use a reference that takes these tokens, or "
            "raise score.accept.max_rejected_fraction; to try again, delete the parts"
        )
