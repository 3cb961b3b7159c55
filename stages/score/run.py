"""The score stage: a pool of actors, each with one engine; a part goes in, a part of log-probs is on disk."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from stages import schema
from stages.artifacts import PreferencePairs, check_covers
from stages.cpu_environment import CPU_ENVIRONMENT
from stages.errors import out_of_ray
from stages.logps.model import check_fits
from stages.progress import Progress, Silent
from stages.score.config import ScoreConfig, ScoreResources
from stages.score.torch_scorer import TorchScorer
from stages.score.vllm_scorer import VllmScorer


def score(
    config: ScoreConfig,
    *,
    pairs: PreferencePairs,
    out: Path,
    resources: ScoreResources,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the ReferenceLogprobs of `pairs` under `out`, skip parts that are there, and return the facts of the work.

    Raises RecipeError where the model cannot take the pairs' length, ContractError where a part of them is damaged.
    """
    progress = progress or Silent()
    made = pairs.manifest.facts
    check_fits(config.model, made["longest"])
    todo = [part for part in pairs.parts if not (out / part).exists()]
    finished = len(pairs.parts) - len(todo)
    progress.start(len(pairs.parts), finished, "parts")
    scored_pairs, began = 0, time.perf_counter()
    with out_of_ray():
        for row in _scored_parts(todo, config, pairs, out, resources, made["longest"]):
            finished, scored_pairs = finished + 1, scored_pairs + row["pairs"]
            progress.advance(finished, **{"pairs/s": scored_pairs / (time.perf_counter() - began)})
    return {
        "pairs": sum(pq.read_metadata(out / part).num_rows for part in pairs.parts),
        "tokens": made["tokens"],
        "backend": config.backend,
    }


def _scored_parts(
    todo: list[str],
    config: ScoreConfig,
    pairs: PreferencePairs,
    out: Path,
    resources: ScoreResources,
    longest: int,
) -> Any:
    if not todo:
        return []
    return (
        ray.data.from_items([{"part": part} for part in todo], override_num_blocks=len(todo))
        .map_batches(
            PartScorer,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=resources.cpus_per_actor,
            num_gpus=resources.gpus_per_actor,
            runtime_env={} if resources.gpus_per_actor else {"env_vars": CPU_ENVIRONMENT},
            # Two calls in flight overlap the next part's reading with this one's scoring, which stays one at a time.
            compute=ray.data.ActorPoolStrategy(
                size=min(resources.actors, len(todo)),
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=False,
            ),
            fn_constructor_kwargs={
                "config": config,
                "pairs": pairs,
                "out": out,
                "resources": resources,
                "longest": longest,
            },
        )
        .iter_rows()
    )


class PartScorer:
    """The callable of the actor pool. Its state is one engine; its effect is one part on disk a call."""

    def __init__(self, config: ScoreConfig, pairs: PreferencePairs, out: Path, resources: ScoreResources, longest: int):
        self.pairs, self.out = pairs, out
        scorer = VllmScorer if config.backend == "vllm" else TorchScorer
        self.scorer = scorer(config, resources, longest)

    def __call__(self, batch: pa.Table) -> pa.Table:
        part = batch["part"][0].as_py()
        table = self.pairs.read(part)
        logps = self.scorer.token_logps(table) if len(table) else []
        scored = schema.logprobs_table(table["pair_id"], logps)
        check_covers(scored, table, f"the log-probs just scored for {part}")
        schema.write_part(scored, self.out / part)
        return pa.table({"part": [part], "pairs": [len(table)]})
