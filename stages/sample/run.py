"""The sample stage: a pool of actors, each with one engine, draws completions for parts of prompts."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from stages import schema
from stages.cpu_environment import CPU_ENVIRONMENT
from stages.errors import ContractError, RecipeError, out_of_ray
from stages.model_files import adapter_at, check_fits
from stages.names import part_name
from stages.pool.actors import follow, reports
from stages.progress import Progress, Silent
from stages.sample.config import SampleConfig, SampleResources
from stages.sample.known import KnownCompletions
from stages.sample.part_sampler import Job, PartSampler, engine_starts, reports_of
from stages.sample.prompts import row_of_reject, write_prompts
from stages.samples import COMPLETIONS, Completions


def sample(
    config: SampleConfig,
    *,
    out: Path,
    resources: SampleResources,
    progress: Progress | None = None,
    known: Sequence[Completions] = (),
) -> dict[str, Any]:
    """Write the Completions of `config` under `out`, skip parts that are there, and return the facts of the work.

    `known`: what the same models have drawn before in the same way; it is taken over. Raises RecipeError for a source,
    a tokenizer or a model that cannot serve; ContractError where too many prompts have no completions.
    """
    for model in config.models:
        if adapter_at(model):
            raise RecipeError(
                f"sample.models: {model} is an adapter, which the engine does not merge. Name the merged model "
                "(train.lora.merge: true)"
            )
    folder = out / ".prompts"
    with out_of_ray():
        prompts: dict[str, Any] = ray.get(
            ray.remote(num_cpus=1, runtime_env={"env_vars": CPU_ENVIRONMENT})(write_prompts).remote(config, folder)
        )
    _check_dropped(prompts, config, folder)
    for model in config.models:
        check_fits(model, prompts["longest"] + config.max_tokens, prompts["largest_id"])
    taken = KnownCompletions([(each, each.manifest) for each in known])
    jobs = [
        Job(config, resources, folder, prompts["num_parts"], prompts["longest"], model, taken, out)
        for model in range(len(config.models))
    ]
    parts = [_parts(job) for job in jobs]
    todo = [[part for part in each if not (out / part).exists()] for each in parts]
    engine_starts(jobs[0]).forget()  # of an earlier run
    found = chain.from_iterable(
        reports(each, PartSampler, job, resources) for each, job in zip(todo, jobs, strict=True)
    )
    follow(
        found,
        sum(map(len, parts)),
        sum(map(len, todo)),
        resources.actors,
        ("completions", "drawn"),
        progress or Silent(),
    )
    held = _write_rejects([part for each in parts for part in each], folder, out)
    if (failed := held["failed"]) > config.max_rejected_fraction * prompts["prompts"] * len(jobs):
        raise ContractError(
            f"for {failed} of {prompts['prompts'] * len(jobs)} prompts nothing could be drawn, more than "
            f"sample.max_rejected_fraction {config.max_rejected_fraction} allows. They stand with their errors in "
            f"{out / 'rejects.parquet'}. Mend that, or raise it; to try again, delete the parts"
        )
    return _facts(prompts, held, config, out)


def _parts(job: Job) -> list[str]:
    first = job.model * job.num_parts
    return [part_name(number) for number in range(first, first + job.num_parts)]


def _check_dropped(prompts: dict[str, Any], config: SampleConfig, folder: Path) -> None:
    faults = sum(number for reason, number in prompts["dropped"].items() if reason != "duplicate")
    if not prompts["prompts"] or faults > config.max_rejected_fraction * prompts["rows"]:
        aside = pq.read_table(folder / "rejects.parquet").to_pylist()
        first = next((each for each in aside if each["reason"] != "duplicate"), aside[0])
        counts = ", ".join(f"{number} {reason}" for reason, number in prompts["dropped"].items())
        raise ContractError(
            f"{sum(prompts['dropped'].values())} of {prompts['rows']} rows of {config.source} make no prompt "
            f"({counts}), more than sample.max_rejected_fraction {config.max_rejected_fraction} allows. The first: row "
            f"{first['source_row']} of {first['source']}, {first['reason']}: {first['detail']}. Mend the rows, or "
            "raise sample.max_rejected_fraction"
        )


def _write_rejects(parts: list[str], folder: Path, out: Path) -> dict[str, Any]:
    """Write `rejects.parquet`: rows that are no prompts, prompts without completions. Returns facts of the parts."""
    failed: list[dict[str, Any]] = []
    held: dict[str, Any] = dict.fromkeys(("completions", "tokens", "cut", "logps"), 0)
    for part in parts:
        table = schema.read_part(out / part, (COMPLETIONS,), "Delete it, and run again")
        good = table.filter(pc.is_null(table["error"]))
        held["completions"] += len(good)
        held["tokens"] += len(pc.list_flatten(good["ids"]))
        held["cut"] += pc.sum(pc.equal(good["finish"], "length"), min_count=0).as_py() or 0
        held["logps"] += pc.sum(pc.list_flatten(good["token_logps"]), min_count=0).as_py() or 0.0
        for row in table.filter(pc.is_valid(table["error"])).to_pylist():
            failed.append(row_of_reject(row, "failed", f"model {row['model']}: {row['error']}", row["prompt"]))
    aside = [pq.read_table(folder / "rejects.parquet"), pa.Table.from_pylist(failed, schema=schema.REJECTS)]
    schema.write_part(pa.concat_tables(aside), out / "rejects.parquet")
    return held | {"failed": len(failed)}


def _facts(prompts: dict[str, Any], held: dict[str, Any], config: SampleConfig, out: Path) -> dict[str, Any]:
    """What the parts hold, and what the reports of the work say that was done for them."""
    found = [json.loads(path.read_text()) for path in sorted(reports_of(out).glob("*.json"))]
    actors: dict[str, Counter[str]] = {}
    for each in found:
        figures = actors.setdefault(each["actor"], Counter())
        figures.update({name: each[name] for name in ("completions", "drawn", "seconds", "loading")})
        figures["peak_memory_gb"] = max(figures["peak_memory_gb"], each["peak_memory_gb"])
    return {
        "prompts": prompts["prompts"],
        "rows": prompts["rows"],
        "completions": held["completions"],
        "tokens": held["tokens"],
        "mean_tokens": round(held["tokens"] / max(held["completions"], 1), 1),
        "cut_completions": held["cut"],  # at max_tokens
        "per_token": round(held["logps"] / max(held["tokens"], 1), 4),  # mean log-prob, nats
        "failed": held["failed"],
        "dropped": prompts["dropped"],
        "asked": sum(each["asked"] for each in found),
        "taken_over": sum(each["prompts"] - each["asked"] for each in found),
        "chat": prompts["chat"],
        "num_parts": prompts["num_parts"],
        "num_models": len(config.models),
        "actors": {actor: dict(figures) for actor, figures in actors.items()},
    }
