"""What is said of what both models wrote."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import ContractError
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.evaluation import PLACES, SAMPLES, WRITERS
from stages.evaluate.job import Job
from stages.evaluate.rewards import of as rewards_of
from stages.evaluate.statistics import wins
from stages.evaluate.statistics.bootstrap import means
from stages.evaluate.statistics.divergence import kl, perplexity
from stages.evaluate.statistics.diversity import distinct

_GRAMS = (1, 2, 3)


def samples_of(job: Job, parts: int) -> pa.Table:
    """SAMPLES, before it is judged, of what both models wrote and say of it. Raises ContractError where rows differ."""
    tables = []
    for number in range(parts):
        ours, theirs = (pq.read_table(job.written(who, number)) for who in WRITERS)
        for name in ("prompt_id", "sample"):
            if not ours[name].equals(theirs[name]):
                raise ContractError(f"{job.out}: policy and reference have written to other prompts. Delete {job.out}")
        table = ours.select(["prompt_id", "sample", "split", "prompt"])
        scored = {who: pq.read_table(job.scored(who, number)) for who in WRITERS}
        for writer, written in zip(WRITERS, (ours, theirs), strict=True):
            for column in ("text", "ids", "stopped"):
                table = table.append_column(f"{writer}_{column}", written[column])
            table = table.append_column(f"{writer}_reward", pa.nulls(len(table), pa.float64()))
            for who in WRITERS:
                name = f"{writer}_by_{who}"
                table = table.append_column(name, scored[who][name])
        for place in PLACES:
            table = table.append_column(f"policy_{place}", pa.nulls(len(table), pa.float64()))
        tables.append(table.cast(SAMPLES))
    return pa.concat_tables(tables)


def figures_of(samples: pa.Table, config: EvaluateConfig) -> dict[str, Any]:
    """Of each figure its value and interval; prompts are drawn again with all of their samples."""
    prompts = np.array(samples["prompt_id"].to_pylist())
    ids = {who: samples[f"{who}_ids"].to_pylist() for who in WRITERS}
    lengths = {who: np.array([len(each) for each in ids[who]]) for who in WRITERS}
    stopped = {who: samples[f"{who}_stopped"].to_numpy().astype(float) for who in WRITERS}
    by_reference = {who: _tokens(samples, f"{who}_by_reference") for who in WRITERS}
    told: dict[str, Any] = {"prompts": len(set(prompts.tolist())), "samples": len(samples)}
    if config.samples_itself:
        told |= kl(_tokens(samples, "policy_by_policy"), by_reference["policy"], prompts)
    told["length"] = means(lengths, prompts)
    told["stopped"] = means(stopped, prompts)
    told["distinct"] = {who: {str(n): distinct(ids[who], n) for n in _GRAMS} for who in WRITERS}
    told["perplexity by reference"] = {
        who: perplexity(np.array([each.sum(dtype=np.float64) for each in by_reference[who]]), lengths[who], prompts)
        for who in WRITERS
    }
    return told | _judged(samples, lengths["policy"] - lengths["reference"], prompts, config.tie)


def _judged(samples: pa.Table, longer_by: np.ndarray, prompts: np.ndarray, tie: float) -> dict[str, Any]:
    """By rewards of both texts, or by the preferences of who has compared them."""
    ours, theirs = (rewards_of(samples, f"{who}_reward") for who in WRITERS)
    first, second = (rewards_of(samples, f"policy_{place}") for place in PLACES)
    told: dict[str, Any] = {}
    if (rows := ~np.isnan(ours) & ~np.isnan(theirs)).any():
        ours, theirs = ours[rows], theirs[rows]
        told["reward"] = means({"policy": ours, "reference": theirs, "gain": ours - theirs}, prompts[rows])
        outcomes = wins.of_rewards(ours, theirs, tie)
    elif (rows := ~np.isnan(first)).any():
        outcomes = wins.of_orders(first[rows], second[rows])
        told["contradictions"] = float((first[rows] != second[rows]).mean())
    else:
        return {}
    return {
        "judged": int(rows.sum()),
        **told,
        "win rate": wins.win_rate(outcomes, prompts[rows]),
        "win rate, length-controlled": wins.length_controlled(outcomes, longer_by[rows], prompts[rows]),
        "ties": float((outcomes == 0.5).mean()),
    }


def _tokens(samples: pa.Table, column: str) -> list[np.ndarray]:
    return [np.asarray(each, np.float32) for each in samples[column].to_pylist()]
