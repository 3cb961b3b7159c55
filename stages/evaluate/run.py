"""The evaluate stage: both models write, both read what they wrote and the held-out pairs, and figures are taken."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from stages import schema
from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.errors import ContractError, MissingArtifact, RecipeError, out_of_ray
from stages.evaluate import prompts as prompts_of
from stages.evaluate.actors import Pool, worked
from stages.evaluate.config import EvaluateConfig, EvaluateResources
from stages.evaluate.evaluation import WRITERS, Evaluation
from stages.evaluate.job import PROMPTS_A_PART, Job
from stages.evaluate.reader import Reader
from stages.evaluate.statistics.bootstrap import Estimate
from stages.evaluate.writer import Writer, num_taken_over, take_over
from stages.model_files import adapter_at, check_fits
from stages.progress import Progress, Silent


def evaluate(
    config: EvaluateConfig,
    *,
    pairs: PreferencePairs | None = None,
    logprobs: ReferenceLogprobs | None = None,
    out: Path,
    resources: EvaluateResources,
    progress: Progress | None = None,
    known: Sequence[Evaluation] = (),
) -> dict[str, Any]:
    """Write the Evaluation of `config.policy` beside `config.reference` under `out`, and return the facts of the work.

    `logprobs` are the reference's of `pairs`, and may be left out where the loss needs none. `known`: other policies
    beside the same reference, asked in the same way; what it wrote there is taken over. Raises RecipeError where a
    model cannot take what it is given, or there is nothing to ask; ContractError where parts are damaged.
    """
    if config.loss.reference and pairs is not None:
        if logprobs is None:
            raise MissingArtifact(f"evaluate.loss {config.loss.name} needs the reference's log-probs: score the pairs")
        logprobs.check_scored_from(pairs)
    job = Job(config, resources, pairs, logprobs if config.loss.reference else None, out, known)
    out.mkdir(parents=True, exist_ok=True)
    held_out = _parts(pairs)
    longest = pairs.manifest.facts["longest"] if held_out and pairs is not None else 0
    parts = 0
    if config.sampling is not None:
        prompts = _prompts(job)
        parts = math.ceil(len(prompts) / PROMPTS_A_PART)
        reach = max(pc.list_value_length(prompts["ids"]).to_pylist(), default=0) + config.sampling.max_tokens
        longest = max(longest, reach)
    if not held_out and not parts:
        raise RecipeError(
            "evaluate has nothing to ask: no pair is held out, and there are no prompts. Set shard.eval_fraction, "
            "shard.eval or evaluate.prompts"
        )
    for who in WRITERS:
        _check(job.model(who), who, longest, pairs, bool(parts))
    _ask(job, held_out, parts, longest, progress or Silent())
    return _tell(job, held_out, parts)


def _parts(pairs: PreferencePairs | None) -> list[str]:
    """Those that have held-out rows."""
    if pairs is None:
        return []
    return [
        part for part in pairs.parts if pc.any(pc.not_equal(pairs.columns(part, ["split"])["split"], "train")).as_py()
    ]


def _prompts(job: Job) -> pa.Table:
    """prompts.PROMPTS, the same in each run."""
    if not job.prompts.exists():
        config = job.config
        if config.prompts is not None:
            read = ray.remote(num_cpus=1)(prompts_of.of_file)
            with out_of_ray():
                found = ray.get(read.remote(Path(config.prompts), job.model("policy"), config.num_prompts))
        else:
            found = (
                prompts_of.of_pairs(job.pairs, config.num_prompts) if job.pairs else prompts_of.PROMPTS.empty_table()
            )
        schema.write_part(found, job.prompts)
    return pq.read_table(job.prompts)


def _check(model: str, who: str, longest: int, pairs: PreferencePairs | None, writes: bool) -> None:
    check_fits(model, longest, pairs.manifest.facts.get("largest_id", 0) if pairs is not None else 0)
    if writes and adapter_at(model):
        raise RecipeError(
            f"evaluate.{who} {model} is an adapter, and an engine takes whole models. Set train.lora.merge: true, or "
            "merge it with peft and name the merged model; evaluate.sampling: null looks at held-out pairs alone"
        )


def _ask(job: Job, held_out: list[str], parts: int, longest: int, progress: Progress) -> None:
    """Make what is missing: first both models write, then both read."""
    for number in range(parts):
        take_over(job, number)
    pieces = {(who, n): (job.written(who, n), job.scored(who, n)) for who in WRITERS for n in range(parts)}
    to_write = {who: [(n,) for n in range(parts) if not job.written(who, n).exists()] for who in WRITERS}
    to_read: dict[str, list[tuple[str, Any]]] = {
        who: [("samples", n) for n in range(parts) if not job.scored(who, n).exists()] for who in WRITERS
    }
    to_read["policy"] += [("pairs", part) for part in held_out if not job.seen(part).exists()]
    left = sum(len(todo) for todo in to_write.values()) + sum(len(todo) for todo in to_read.values())
    done = 2 * len(pieces) + len(held_out) - left
    progress.start(done + left, done, "parts")
    for makers in (
        [Pool(partial(Writer, job, who), to_write[who], at_once=2) for who in WRITERS],
        [Pool(partial(Reader, job, who, longest), to_read[who]) for who in WRITERS],
    ):
        for _ in worked(makers, job.resources):
            done += 1
            progress.advance(done)


def _tell(job: Job, held_out: list[str], parts: int) -> dict[str, Any]:
    """Write the artifact's files; its facts are the figures."""
    from stages.evaluate import held_out as pairs_of  # with torch, which takes seconds
    from stages.evaluate import rewards, written

    config = job.config
    figures: dict[str, Any] = {}
    facts: dict[str, Any] = {"models": {who: job.model(who) for who in WRITERS}}
    if held_out:
        tables = [table for part in held_out if len(table := pq.read_table(job.seen(part)))]
        if not tables:
            raise ContractError("no held-out pair has what the loss needs of it: see rejects.parquet of score")
        seen = pa.concat_tables(tables)
        assert job.pairs is not None
        sources = job.pairs.sources_of(seen["source"].to_pylist())
        figures["held out"] = pairs_of.figures_of(seen, np.array(sources, object), config.loss)
        schema.write_part(pairs_of.with_losses(seen, config.loss), job.out / "pairs.parquet")
        facts["pairs"] = len(seen)
    if parts:
        samples, faults = rewards.judged(written.samples_of(job, parts), job)
        figures["written"] = written.figures_of(samples, config)
        if faults:
            facts |= {"faults": faults}
        schema.write_part(samples, job.out / "samples.parquet")
        facts |= {"prompts": figures["written"]["prompts"]}
        facts["tokens"] = sum(int(pc.sum(pc.list_value_length(samples[f"{who}_ids"])).as_py()) for who in WRITERS)
    plain, taken = _plain(figures), {"taken_over": sum(num_taken_over(job, number) for number in range(parts))}
    unfinished = job.out / ".evaluation.json"
    unfinished.write_text(json.dumps(facts | plain, indent=1) + "\n")
    unfinished.rename(job.out / "evaluation.json")
    return facts | taken | plain


def _plain(value: Any) -> Any:
    """As JSON knows it: what is not finite is null."""
    if isinstance(value, Estimate):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
