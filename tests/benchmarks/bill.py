"""The memory that `plan` tells by formula, beside what ranks take: whole, and what a forward pass keeps for a backward.

Usage: python -m tests.benchmarks.bill [--only N ..]

Each row is a start of that many ranks with gloo between them, without Ray: two steps of the trainer on random pairs, in
float32 where nothing else is said. The model has random weights. "kept" grows from before a forward pass to its end,
"peak" is the largest of a rank. Prints a line a row, then one JSON object.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from stages.cpu_environment import CPU_ENVIRONMENT
from tests.benchmarks.inputs import random_pairs

TOKENS = (1024, 512, 512)  # of prompt, chosen and rejected: a row of 2,048
SHAPE = {
    "vocab_size": 32768, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {},
    {"activation_checkpointing": "selective"},
    {"activation_checkpointing": "layer"},
    {"activation_checkpointing": "layer", "optimizer": "adamw_8bit"},
    {"lora": {"rank": 16}},
    {"activation_checkpointing": "layer", "lora": {"rank": 16}},
    {"workers": 2},
    {"workers": 2, "activation_checkpointing": "layer"},
    {"workers": 2, "activation_checkpointing": "layer", "dtype": "bfloat16"},
    {"workers": 2, "context_parallel": 2},
    {"workers": 2, "context_parallel": 2, "activation_checkpointing": "selective"},
    {"workers": 2, "context_parallel": 2, "activation_checkpointing": "layer"},
    {"workers": 4, "context_parallel": 4},
    {"workers": 4, "context_parallel": 4, "activation_checkpointing": "selective"},
    {"workers": 4, "context_parallel": 4, "activation_checkpointing": "layer"},
    {"workers": 4, "context_parallel": 4, "shard_size": 2, "activation_checkpointing": "layer"},
]
OF_RECIPE = {"optimizer", "lora", "dtype"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", help="rows, from 0")
    wanted = parser.parse_args().only or range(len(ROWS))
    os.environ |= CPU_ENVIRONMENT | {
        "MALLOC_MMAP_THRESHOLD_": "65536"
    }  # what is freed goes back: peaks are what is held
    work = Path(tempfile.mkdtemp(prefix="bill-"))
    try:
        prepare(work)
        results = [measure(work, ROWS[number]) for number in wanted]
    finally:
        shutil.rmtree(work)
    print(json.dumps(results))


def prepare(work: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(work / "model")
    random_pairs(work, count=8, tokens=TOKENS, rows_per_part=8)


def measure(work: Path, row: dict[str, Any]) -> dict[str, Any]:
    from stages.train.memory.bill import bill
    from stages.train.memory.sizes import sizes_of

    config, resources = fields(work, row)
    sizes = sizes_of(config.policy)
    assert sizes is not None
    told = bill(sizes, config, resources, resources.max_tokens_per_microbatch)
    context, world = multiprocessing.get_context("spawn"), resources.workers
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = context.SimpleQueue()
    ranks = [context.Process(target=rank, args=(work, row, number, world, port, results)) for number in range(world)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    assert all(each.exitcode == 0 for each in ranks)
    found = [results.get() for _ in ranks]
    kept, peak = (round(max(each[key] for each in found) / 1e9, 3) for key in ("kept", "peak"))
    parts = {name: round(value / 1e9, 3) for name, value in vars(told).items()}
    line = {"row": row, "kept": kept, "peak": peak, "told": round(told.total / 1e9, 3), **parts}
    print(json.dumps(line), f"told / peak {told.total / 1e9 / peak:.2f}", flush=True)
    return line


def fields(work: Path, row: dict[str, Any]) -> tuple[Any, Any]:
    from stages.train.config import TrainConfig, TrainResources

    of_recipe = {key: value for key, value in row.items() if key in OF_RECIPE}
    rest = {key: value for key, value in row.items() if key not in OF_RECIPE}
    tokens = sum(TOKENS) // row.get("context_parallel", 1)
    config = TrainConfig(
        policy=str(work / "model"), global_batch=2 * world_of(row), max_steps=2, starts_at_reference=False, **of_recipe
    )
    return config, TrainResources(**{"workers": 1, "max_tokens_per_microbatch": tokens} | rest)


def world_of(row: dict[str, Any]) -> int:
    """Of ranks that compute different pairs."""
    return int(row.get("workers", 1) // row.get("context_parallel", 1))


def rank(work: Path, row: dict[str, Any], number: int, world: int, port: int, results: Any) -> None:
    import torch.distributed as dist

    from stages.artifacts import PreferencePairs, ReferenceLogprobs
    from stages.train.job import Job
    from stages.train.trainer import Trainer

    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=number, world_size=world)
    config, resources = fields(work, row)
    inputs = PreferencePairs(work / "pairs"), ReferenceLogprobs(work / "logprobs")
    trainer = Trainer(Job(config, resources, *inputs, work, TOKENS[0] + TOKENS[1]))
    kept = 0
    forward = trainer.model.forward

    def watched(*arguments: Any, **others: Any) -> Any:
        nonlocal kept
        before = resident()
        values = forward(*arguments, **others)
        kept = max(kept, resident() - before)
        return values

    trainer.model.forward = watched  # type: ignore[method-assign]
    for step in (1, 2):
        trainer.step(step, 2)
    results.put({"kept": kept, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})
    dist.destroy_process_group()


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
