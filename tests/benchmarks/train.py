"""Training speed and memory beside TRL's DPOTrainer, on the same pairs, model, batches and dtype, taking turns.

Usage: python -m tests.benchmarks.train [--model FOLDER | --shape llama-3.2-1b] [--sets hh long] [--rounds 3]

Every measurement is its own process, without Ray, that computes the reference log-probs first and then trains: TRL by
../shared/peers/trl_dpo.py, ours by the torch scorer and the Trainer of the train stage. Both see the pairs in the same
order, and speed is that of training alone. "hh": human preferences with long prompts and short answers; "long": those
of the same set with the longest answers. FLOP/s count what the shared forward has to compute: 6 a weight and token, the
head at completion tokens only, and attention without what its mask hides. Speed counts every step from the first; the
share of the matmul peak is that of the median step, when memory is warm. There are two peaks: of torch's matmul, which
is what a model is bound by as a rule ("peak_share"; above 1 is possible), and of the product that our layers use
instead ("linear_peak_share"). Prints a line a measurement, then one JSON object.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.cpu_environment import CPU_ENVIRONMENT
from tests.benchmarks.inputs import HH, MODEL, ROOT, finish_logprobs, hh_pairs
from tests.benchmarks.process import last_line

PEER = ROOT.parent / "shared" / "peers" / "trl_dpo.py"
SHAPES = {  # hidden, feed-forward, layers, heads, key-value heads, tied
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, True),
    "llama-3-8b": (4096, 14336, 32, 32, 8, False),
}
RESOURCES = {"compile": True, "max_tokens_per_microbatch": 512}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--do", choices=["train", "peak"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        print(json.dumps({"train": train, "peak": peak}[options.do](options)))
        return
    if not HH.exists():
        sys.exit(f"skipped: the preference pairs are not here ({HH})")
    with tempfile.TemporaryDirectory(prefix="bench-train-") as scratch:
        if options.shape:
            options.model = random_model(options, Path(scratch) / "model")
        results = {}
        for name, count in zip(options.sets, options.pairs, strict=False):
            options.work = Path(scratch) / name
            options.work.mkdir()
            prepare(name, count, options)
            results[name] = compare(name, count, options)
    print(json.dumps(results))


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a measurement of ours is told, by step_profile.py too."""
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape, with the tokenizer of --model")
    parser.add_argument("--sets", nargs="+", choices=["hh", "long"], default=["hh", "long"])
    parser.add_argument("--pairs", nargs="+", type=int, default=[48, 16], help="of each set")
    parser.add_argument("--batch", type=int, default=4, help="pairs of TRL's micro-batch; two make a step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument(
        "--resources", type=json.loads, default=RESOURCES, help="of ours: fields of cluster.train, as JSON"
    )
    parser.add_argument("--extra", type=json.loads, default={}, help="of TRL: more DPOConfig fields, as JSON")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)


def compare(name: str, count: int, options: argparse.Namespace) -> dict[str, Any]:
    ours, theirs, peaks = [], [], []
    for number in range(options.rounds):
        peaks.append(run_ours("peak", options))
        ours.append(run_ours("train", options))
        show(name, number, "ours", ours[-1])
        if peer := run_peer(count, options):
            theirs.append(peer)
            show(name, number, "trl", peer)

    def median(values: Iterator[float]) -> float:
        return round(statistics.median(values), 4)

    result = {
        "pairs_per_s": median(each["train_pairs_per_s"] for each in ours),
        "tokens_per_s": median(each["tokens_per_s"] for each in ours),
        "peak_memory_gb": median(each["peak_memory_gb"] for each in ours),
        "matmul_peak_gflops": median(peak["torch"] / 1e9 for peak in peaks),
        "peak_share": median(each["step_flops"] / peak["torch"] for each, peak in zip(ours, peaks, strict=True)),
        "linear_peak_gflops": median(peak["ours"] / 1e9 for peak in peaks),
        "linear_peak_share": median(each["step_flops"] / peak["ours"] for each, peak in zip(ours, peaks, strict=True)),
    }
    if theirs:
        both = list(zip(ours, theirs, strict=True))
        result |= {
            "speedup": median(mine["train_pairs_per_s"] / peer["train_pairs_per_s"] for mine, peer in both),
            "memory_ratio": median(mine["peak_memory_gb"] / peer["peak_memory_gb"] for mine, peer in both),
            "loss_difference": max(
                abs(a - b) for mine, peer in both for a, b in zip(mine["losses"], peer["losses"], strict=True)
            ),
        }
    return result


def show(name: str, number: int, system: str, measured: dict[str, Any]) -> None:
    rest = f", steps of {measured['step_seconds']} s" if "step_seconds" in measured else ""
    print(
        f"{name}, round {number + 1}, {system:4}: reference in {measured['reference_s']:.1f} s, "
        f"{measured['train_pairs_per_s']:.3f} pairs/s, "
        f"{measured['peak_memory_gb']:.2f} GB{rest}, losses {[round(loss, 5) for loss in measured['losses']]}",
        flush=True,
    )


def run_ours(what: str, options: argparse.Namespace) -> dict[str, Any]:
    return last_line(child("train", ["--do", what], options), os.environ | CPU_ENVIRONMENT)


def child(module: str, what: list[str], options: argparse.Namespace) -> list[str]:
    """The command of a process that measures `what` with the same options."""
    given = ("model", "batch", "dtype", "lr", "work", "max_length")
    arguments = [f"--{key.replace('_', '-')}={getattr(options, key)}" for key in given]
    arguments.append(f"--resources={json.dumps(options.resources)}")
    return [sys.executable, "-m", f"tests.benchmarks.{module}", *what, *arguments]


def run_peer(count: int, options: argparse.Namespace) -> dict[str, Any] | None:
    if not PEER.exists():
        print(f"TRL is left out: its script is not here ({PEER})")
        return None
    same = {"learning_rate": options.lr, "train_sampling_strategy": "sequential", "lr_scheduler_type": "linear"}
    command = [sys.executable, str(PEER), str(options.model), str(options.work / "triples.jsonl")]
    command += ["--pairs", str(count), "--max-length", str(options.max_length), "--batch", str(options.batch)]
    command += ["--accumulate", "2", "--dtype", options.dtype, "--extra", json.dumps(same | options.extra)]
    return last_line(command, os.environ | {"HF_HUB_OFFLINE": "1"})


def prepare(name: str, count: int, options: argparse.Namespace) -> None:
    """Write the pairs, and the same triples as text for TRL, in the order of our steps."""
    from stages.train.pairs.order import Order

    triples = hh_pairs(options.work, options.model, count, options.max_length, longest_answers=name == "long")
    global_batch = 2 * options.batch
    order = Order(np.array([count]), 0, global_batch, count)
    with (options.work / "triples.jsonl").open("w") as lines:
        for i in np.concatenate([order.batch_at(step) for step in range(1, count // global_batch + 1)]):
            lines.write(json.dumps(vars(triples[i])) + "\n")


def random_model(options: argparse.Namespace, folder: Path) -> Path:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads, kv_heads, tied = SHAPES[options.shape]
    config = LlamaConfig(
        vocab_size=128256, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied, rope_theta=500000.0,
        max_position_embeddings=8192, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(options.model).save_pretrained(folder)
    return folder


def peak(options: argparse.Namespace) -> dict[str, float]:
    """FLOP/s of the best of some large products: by torch's matmul, and by the layers' own `linear`."""
    import torch

    from stages.logps.linear import choose, linear

    choose()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, dtype=getattr(torch, options.dtype), device=device) for _ in range(2))
    best = {}
    for name, product in (("torch", torch.matmul), ("ours", linear)):
        seconds = []
        for _ in range(12):
            began = time.perf_counter()
            product(a, b)[0, 0].item()
            seconds.append(time.perf_counter() - began)
        best[name] = 2 * size**3 / min(seconds)
    return best


def score(options: argparse.Namespace) -> float:
    """Write the reference log-probs; seconds."""
    import pyarrow as pa

    from stages import schema
    from stages.artifacts import PreferencePairs
    from stages.score.config import ScoreConfig, ScoreResources
    from stages.score.torch_scorer import TorchScorer

    pairs = PreferencePairs(options.work / "pairs")
    config = ScoreConfig(model=str(options.model), backend="torch", dtype=options.dtype)
    scorer = TorchScorer(config, ScoreResources(gpus_per_actor=on_gpu()), options.max_length)
    began = time.perf_counter()
    table: pa.Table = pairs.read(pairs.parts[0])
    schema.write_part(
        schema.logprobs_table(table, scorer.token_logps(table)), options.work / "logprobs" / pairs.parts[0]
    )
    finish_logprobs(options.work)
    return time.perf_counter() - began


def train(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    reference_seconds = score(options)
    trainer = trainer_of(options)
    config = trainer.config
    steps = len(trainer.pairs) // config.global_batch
    began = time.perf_counter()
    metrics = [trainer.step(step, steps) for step in range(1, steps + 1)]
    seconds = time.perf_counter() - began
    batches = [trainer.order.batch_at(step) for step in range(1, steps + 1)]
    tokens, flops = np.array([work_of(trainer, rows) for rows in batches]).T
    step_seconds = config.global_batch / np.array([line["pairs_per_second"] for line in metrics])
    dist.destroy_process_group()
    gpu_peak = torch.cuda.max_memory_allocated() if on_gpu() else 0
    return {
        "reference_s": reference_seconds,
        "train_pairs_per_s": len(trainer.pairs) / seconds,
        "tokens_per_s": tokens.sum() / seconds,
        "step_seconds": step_seconds.round(2).tolist(),
        "step_flops": float(np.median(flops / step_seconds)),
        "peak_memory_gb": gpu_peak / 1e9 or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "losses": [line["loss"] for line in metrics],
    }


def trainer_of(options: argparse.Namespace) -> Any:
    """The Trainer of the train stage, in a process group of its own."""
    import torch.distributed as dist

    from stages.artifacts import PreferencePairs, ReferenceLogprobs
    from stages.train.config import TrainConfig, TrainResources
    from stages.train.job import Job
    from stages.train.trainer import Trainer

    dist.init_process_group(
        "nccl" if on_gpu() else "gloo", store=None if "RANK" in os.environ else dist.HashStore(),
        rank=int(os.environ.get("RANK", 0)), world_size=int(os.environ.get("WORLD_SIZE", 1)),
    )  # fmt: skip
    config = TrainConfig(
        policy=str(options.model), dtype=options.dtype, global_batch=2 * options.batch, lr=options.lr,
        schedule="linear", warmup_fraction=0.0,
    )  # fmt: skip
    tokens = {"max_tokens_per_microbatch": RESOURCES["max_tokens_per_microbatch"]}  # where --resources says nothing
    resources = {"cpus_per_worker": os.cpu_count(), "gpus_per_worker": on_gpu(), **tokens}
    out = options.work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    pairs, logprobs = PreferencePairs(options.work / "pairs"), ReferenceLogprobs(options.work / "logprobs")
    job = Job(config, TrainResources(**resources | options.resources), pairs, logprobs, out, options.max_length)
    return Trainer(job)


def work_of(trainer: Any, rows: np.ndarray) -> tuple[int, float]:
    """Tokens, and floating-point operations forward and backward, of some pairs."""
    from stages.train.pairs.batch import Batch

    layout = Batch.of(trainer.pairs.read(rows), trainer.model, trainer.device).layout
    config, head = trainer.model.causal_lm.config, trainer.model.head
    body = sum(weight.numel() for layer in trainer.model.layers for weight in layer.parameters() if weight.ndim == 2)
    seen = sum(
        q * k - q * (q - 1) // 2 for q, k in zip(layout.stretches.lengths, layout.stretches.contexts, strict=True)
    )
    attention = 2 * seen * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    per_pass = body * layout.num_tokens + head.weight.numel() * len(layout.targets) + attention
    return layout.num_tokens, 6.0 * per_pass


def on_gpu() -> int:
    import torch

    return int(torch.cuda.is_available())


if __name__ == "__main__":
    main()
