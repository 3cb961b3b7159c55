"""Scoring speed beside TRL's precompute and transformers; what Ray costs; and growth with the number of pairs.

Usage: python -m tests.benchmarks.score [--rounds 3] [--pairs 96] [--stage-pairs 2000] [--stage-backend vllm]
                                        [--growth 1000 4000 16000]

Every measurement is its own process. First, on some HH pairs, taking turns: the torch scorer, with its layers compiled
("torch") and without ("plain"), and the vLLM scorer (their loops alone, the model loaded), transformers in padded
batches of 8 sequences sorted by length, and TRL's `precompute_ref_log_probs` (its trainer's start, in which that
happens, with tokenization). Then the whole stage on Ray beside the bare loop of the same engine over the same parts,
each with the loading of its model. Then the stage with a tiny random model: seconds a pair, and peak memory of driver
and actor, as pairs grow. Prints a line a measurement, then one JSON object.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.cpu_environment import CPU_ENVIRONMENT
from tests.benchmarks.inputs import HH, MODEL, hh_pairs, random_pairs, tiny_model
from tests.benchmarks.process import last_line
from tests.benchmarks.train import PEER

SYSTEMS = ("torch", "plain", "vllm", "transformers", "trl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--stage-pairs", type=int, default=2000)
    parser.add_argument("--stage-backend", choices=["torch", "vllm"], default="vllm")
    parser.add_argument("--growth", type=int, nargs="*", default=[1000, 4000, 16000])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--do", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        print(json.dumps(DO[options.do](options)))
        return
    if not HH.exists():
        sys.exit(f"skipped: the preference pairs are not here ({HH})")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-score-") as scratch:
        if options.rounds:
            results |= compare(options, prepare(options, options.pairs, Path(scratch) / "few"))
        if options.stage_pairs:
            results |= against_the_engine(options, prepare(options, options.stage_pairs, Path(scratch) / "many"))
        if options.growth:
            results |= growth(options, Path(scratch))
    print(json.dumps(results))


def compare(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    from stages.score.part_scorer import count_tokens

    measured: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    tokens, peaks = sum(map(count_tokens, tables(work))), []
    for number in range(options.rounds):
        peaks.append(measure("peak", options, work))
        for system in SYSTEMS:
            if system == "trl":
                if not PEER.exists():
                    print(f"TRL is left out: its script is not here ({PEER})")
                    continue
                command = [sys.executable, str(PEER), str(options.model), str(work / "triples.jsonl")]
                command += ["--pairs", str(options.pairs), "--extra", json.dumps({"max_steps": 1})]
                found = last_line(command, os.environ | {"HF_HUB_OFFLINE": "1"})
                found = {"pairs_per_s": options.pairs / found["reference_s"]}
            else:
                found = measure(system, options, work)
            measured[system].append(found)
            speed = found["pairs_per_s"]
            rest = f", {found['flops'] / 1e9:.0f} GFLOP/s" if "flops" in found else ""
            print(
                f"round {number + 1}, {system:12}: {speed:.3f} pairs/s, "
                f"{speed * tokens / options.pairs:.0f} tokens/s{rest}",
                flush=True,
            )

    def ratio(system: str, other: str) -> float:
        pairs = zip(measured[system], measured[other], strict=True)
        return round(statistics.median(a["pairs_per_s"] / b["pairs_per_s"] for a, b in pairs), 3)

    shares = {
        name: statistics.median(
            found["flops"] / peak[name] for found, peak in zip(measured["torch"], peaks, strict=True)
        )
        for name in ("torch", "ours")
    }
    result: dict[str, Any] = {
        "torch_over_transformers": ratio("torch", "transformers"),
        "torch_over_vllm": ratio("torch", "vllm"),
    }
    result |= {"peak_share": round(shares["torch"], 3), "linear_peak_share": round(shares["ours"], 3)}
    if measured["trl"]:
        result |= {f"{system}_over_trl": ratio(system, "trl") for system in ("torch", "plain", "vllm")}
    return result


def against_the_engine(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    engine, stage = measure("engine", options, work), measure("stage", options, work)
    print(
        f"{options.stage_pairs} pairs by {options.stage_backend}: bare engine {engine['seconds']:.1f} s, "
        f"stage {stage['seconds']:.1f} s",
        flush=True,
    )
    return {"stage_over_engine": round(engine["seconds"] / stage["seconds"], 3)}


def growth(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    options.model, options.stage_backend = tiny_model(scratch / "tiny"), "torch"
    found = []
    for count in options.growth:
        work = scratch / str(count)
        random_pairs(work, count, tokens=(34, 33, 33), rows_per_part=500, scored=False)
        found.append(measure("stage", options, work))
        last = found[-1]
        print(
            f"{count} pairs: {last['seconds']:.1f} s, driver {last['driver_gb']:.2f} GB, "
            f"actor {last['actor_gb']:.2f} GB",
            flush=True,
        )
    # What starting costs drops out of the difference of two sizes.
    slopes = [
        (large["seconds"] - small["seconds"]) / (more - fewer)
        for small, large, fewer, more in zip(found, found[1:], options.growth, options.growth[1:], strict=False)
    ]
    memory = [each["driver_gb"] + each["actor_gb"] for each in found]
    return {"growth": round(slopes[-1] / slopes[0], 3), "memory_growth": round(memory[-1] / memory[0], 3)}


def measure(what: str, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.score", "--do", what, "--work", str(work)]
    command += ["--model", str(options.model), "--stage-backend", options.stage_backend]
    return last_line(command, os.environ | CPU_ENVIRONMENT)


def prepare(options: argparse.Namespace, count: int, work: Path) -> Path:
    """Write HH pairs, and their triples as text for TRL."""
    work.mkdir()
    triples = hh_pairs(work, options.model, count, max_length=512, parts=max(1, count // 125))
    (work / "triples.jsonl").write_text("".join(json.dumps(vars(triple)) + "\n" for triple in triples))
    return work


def tables(work: Path) -> Iterator[Any]:
    from stages.artifacts import PreferencePairs

    pairs = PreferencePairs(work / "pairs")
    return map(pairs.read, pairs.parts)


def score_loop(backend: str, options: argparse.Namespace, compiled: bool = False) -> dict[str, Any]:
    import torch

    from stages.score.config import ScoreConfig, ScoreResources
    from stages.score.torch_scorer import TorchScorer
    from stages.score.vllm_scorer import VllmScorer

    began = time.perf_counter()
    config = ScoreConfig(model=str(options.model), backend=backend, dtype="float32")
    resources = ScoreResources(
        gpus_per_actor=int(torch.cuda.is_available()), cpus_per_actor=os.cpu_count(), compile=compiled
    )
    scorer = (TorchScorer if backend == "torch" else VllmScorer)(config, resources, 512)
    loaded, count = time.perf_counter(), 0
    for table in tables(options.work):
        scorer.token_logps(table)
        count += len(table)
    done = time.perf_counter()
    found = {"pairs_per_s": count / (done - loaded), "seconds": done - began}
    if isinstance(scorer, TorchScorer):
        rows = [row for table in tables(options.work) for row in table.to_pylist()]
        found["flops"] = sum(operations(scorer.model, row) for row in rows) / (done - loaded)
    return found


def operations(model: Any, row: dict[str, Any]) -> float:
    """Floating-point operations of the matrix products for one pair: 2 a weight and token."""
    layout = model.lay_out([(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])])
    body = sum(weight.numel() for layer in model.layers for weight in layer.parameters() if weight.ndim == 2)
    return 2.0 * (body * layout.num_tokens + model.head.weight.numel() * len(layout.targets))


def by_transformers(options: argparse.Namespace) -> dict[str, Any]:
    """As scripts do it: padded batches, all logits, log_softmax, gather."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    rows = [row for table in tables(options.work) for row in table.to_pylist()]
    sequences = [(row["prompt_ids"], row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
    sequences.sort(key=lambda each: len(each[0]) + len(each[1]))
    began = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(sequences), 8):
            batch = [prompt + completion for prompt, completion in sequences[start : start + 8]]
            width = max(map(len, batch))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            logits.log_softmax(-1).gather(-1, ids[:, 1:, None])
    return {"pairs_per_s": len(rows) / (time.perf_counter() - began)}


def run_stage(options: argparse.Namespace) -> dict[str, Any]:
    from pipeline.cluster.connection import connected
    from pipeline.recipe.sections import Cluster
    from stages.artifacts import PreferencePairs
    from stages.score.config import Acceptance, ScoreConfig, ScoreResources

    with connected(Cluster(), verbose=False):
        from stages.score.run import score

        config = ScoreConfig(
            model=str(options.model), backend=options.stage_backend, dtype="float32",
            accept=Acceptance(calibration_pairs=0),
        )  # fmt: skip
        began = time.perf_counter()
        facts = score(
            config, pairs=PreferencePairs(options.work / "pairs"), out=options.work / "logprobs",
            resources=ScoreResources(cpus_per_actor=os.cpu_count()),
        )  # fmt: skip
        seconds = time.perf_counter() - began
    actor = max(each["peak_memory_gb"] for each in facts["actors"].values())
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "driver_gb": driver, "actor_gb": actor}


def matmul_peak(options: argparse.Namespace) -> dict[str, Any]:  # noqa: ARG001
    from tests.benchmarks.train import peak

    return peak(argparse.Namespace(dtype="float32"))


DO = {
    "torch": lambda options: score_loop("torch", options, compiled=True),
    "plain": lambda options: score_loop("torch", options),
    "engine": lambda options: score_loop(options.stage_backend, options),
    "vllm": lambda options: score_loop("vllm", options),
    "transformers": by_transformers,
    "stage": run_stage,
    "peak": matmul_peak,
}

if __name__ == "__main__":
    main()
