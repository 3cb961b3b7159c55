"""What a rank of a sharded run holds: a model that is never whole in memory is written, read by shards and trained.

Usage: python -m tests.benchmarks.load [--layers 23] [--ranks 2] [--optimizer adamw_8bit] [--work FOLDER]

A random Llama, 4.3 GB of float32 weights at 23 layers, is written to disk a layer at a time. Two ranks (gloo, a thread
each) read their shards of it and train one step of one pair of 96 tokens, all weights, layers checkpointed. With
AdamW's two moments in float32, training takes 17 GB on both ranks together, so they take a byte each.

Memory is what a process has that is no mapped file, looked at every 5 ms. "held" is what a rank cannot be without: its
shards of weights, gradients and moments, and the activations that are kept for the backward pass. Prints one JSON
object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from stages.cpu_environment import cpu_environment
from tests.benchmarks.inputs import ROOT, random_pairs

TOKENS = (32, 32, 32)  # of prompt, chosen and rejected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=23)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--optimizer", default="adamw_8bit")
    parser.add_argument("--work", type=Path, help="for the model; a temporary folder if left out")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        print(json.dumps(train(options)))
        return
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        size = write_model(work / "model", options.layers)
        random_pairs(work, 1, TOKENS, 1)
        own = ["--layers", str(options.layers), "--ranks", str(options.ranks), "--optimizer", options.optimizer]
        command = [sys.executable, "-m", "tests.benchmarks.load", *own, "--work", folder, "--rank"]
        environment = os.environ | cpu_environment(options.ranks)
        ranks = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, env=environment, cwd=ROOT)
            for rank in range(options.ranks)
        ]
        wait(ranks)
        each = [json.loads(process.communicate()[0].decode().strip().splitlines()[-1]) for process in ranks]
    print(json.dumps({"model_gb": round(size / 1e9, 2), "optimizer": options.optimizer, "ranks": each}))


def wait(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Until all have ended. Where one fails, which the others would wait for, so do they and this."""
    while any(process.poll() is None for process in ranks):
        time.sleep(0.2)
        if failed := {number: process.returncode for number, process in enumerate(ranks) if process.poll()}:
            for process in ranks:
                process.kill()
            codes = ", ".join(f"rank {number} with {code}" for number, code in failed.items())
            sys.exit(f"ended by failure: {codes} (-9: killed, for lack of memory perhaps)")


def write_model(folder: Path, layers: int) -> int:
    """Random weights, a file a layer. Returns their bytes in float32."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder.mkdir()
    config = LlamaConfig(
        vocab_size=8000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in AutoModelForCausalLM.from_config(config).named_parameters()}
    torch.manual_seed(0)
    where: dict[str, str] = {}
    for part in [f"layers.{number}." for number in range(layers)] + [""]:
        names = [name for name in shapes if name not in where and part in name]
        file = f"model-{part.strip('.') or 'rest'}.safetensors"
        weights = {name: torch.randn(shapes[name]) * 0.02 for name in names}
        save_file(weights, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return 4 * sum(shape.numel() for shape in shapes.values())


def train(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from stages.artifacts import PreferencePairs, ReferenceLogprobs
    from stages.train.config import TrainConfig, TrainResources
    from stages.train.job import Job
    from stages.train.trainer import Trainer

    dist.init_process_group(
        "gloo", init_method=f"file://{options.work}/meeting", rank=options.rank, world_size=options.ranks
    )
    config = TrainConfig(
        policy=str(options.work / "model"), starts_at_reference=False, global_batch=1, max_steps=1, lr=1e-6,
        optimizer=options.optimizer,
    )  # fmt: skip
    resources = TrainResources(
        workers=options.ranks, activation_checkpointing="layer", max_tokens_per_microbatch=sum(TOKENS)
    )
    pairs, logprobs = PreferencePairs(options.work / "pairs"), ReferenceLogprobs(options.work / "logprobs")
    job = Job(config, resources, pairs, logprobs, options.work, TOKENS[0] + TOKENS[1])
    peak = Peak()
    began = time.perf_counter()
    trainer = Trainer(job)
    loaded, seconds = peak.taken(), time.perf_counter() - began
    metrics = trainer.step(1, 1)
    stepped = peak.taken()
    weights = [local(weight) for weight in trainer.model.parameters()]
    states = [local(each) for state in trainer.optimizer.state.values() for each in state.values()]
    shards = 2 * sum(weight.nbytes for weight in weights) + sum(each.nbytes for each in states)
    shape = trainer.model.causal_lm.config
    # Of each layer its input, and of one layer all that it keeps: 4 times the width in attention, 3 inner ones.
    kept = shape.hidden_size * (shape.num_hidden_layers + 6) + 3 * shape.intermediate_size
    held = shards + 4 * sum(TOKENS) * kept
    gb = {
        "before": peak.before, "shards_of_weights": sum(weight.nbytes for weight in weights), "peak_loading": loaded,
        "held": held, "peak_step": stepped,
    }  # fmt: skip
    dist.destroy_process_group()
    return {
        **{f"{name}_gb": round(value / 1e9, 3) for name, value in gb.items()},
        "loading_over_shards": round(loaded / gb["shards_of_weights"], 3),
        "step_over_held": round(stepped / held, 3),
        "loading_seconds": round(seconds, 1),
        "step_seconds": round(metrics["step_seconds"], 1),
        "torch": torch.__version__,
    }


def local(tensor: Any) -> Any:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class Peak:
    """Of this process's memory that is no mapped file, in bytes, libraries that were there before included."""

    def __init__(self) -> None:
        self.before = self._highest = self._now()
        threading.Thread(target=self._look, daemon=True).start()

    def taken(self) -> int:
        """The highest since this was asked before."""
        highest, self._highest = self._highest, self._now()
        return highest

    def _look(self) -> None:
        while True:
            self._highest = max(self._highest, self._now())
            time.sleep(0.005)

    def _now(self) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


if __name__ == "__main__":
    main()
