"""Peak memory of one training step against vocabulary, length and number of pairs, with and without a reference model.

Usage: python -m tests.benchmarks.memory [--rounds 3] [--max-tokens 2048]

Each measurement is its own process, without Ray: a forward and backward pass and an AdamW step on random pairs, fp32,
by the modules that the train stage is made of, in micro-batches of at most --max-tokens. The model has random weights
and the width of SmolLM2-135M in 6 layers. "with reference" loads a second model and scores the same pairs with it, as a
trainer without a score stage does. "logits" is what a [tokens, vocabulary] tensor in fp32 would take for the step's
pairs, as two sequences each. Prints a line a measurement, then one JSON object.
"""

import argparse
import json
import os
import resource
import statistics
import sys
from typing import Any

from stages.cpu_environment import CPU_ENVIRONMENT
from tests.benchmarks.process import last_line

BASE = {"vocabulary": 49152, "length": 512, "pairs": 4}
AXES = {"vocabulary": [16384, 49152, 131072, 262144], "length": [256, 512, 1024, 2048], "pairs": [1, 4, 16]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(step(**options.one)))
        return
    results: dict[str, Any] = {}
    for axis, values in AXES.items():
        results[axis] = {}
        for value in values:
            size = BASE | {axis: value}
            cached, live = (measure(size, options, reference) for reference in (False, True))
            logits = 2 * size["pairs"] * size["length"] * size["vocabulary"] * 4 / 1e9
            results[axis][value] = {"cached_gb": cached, "live_gb": live, "logits_gb": round(logits, 2)}
            print(
                f"{axis:10} {value:7}: {cached:5.2f} GB, with reference {live:5.2f} GB, logits {logits:5.2f} GB",
                flush=True,
            )
    base = results["pairs"][BASE["pairs"]]
    print(json.dumps(results | {"ratio": round(base["cached_gb"] / base["live_gb"], 3)}))


def measure(size: dict[str, int], options: argparse.Namespace, reference: bool) -> float:
    """Median of the rounds, 1e9 bytes."""
    wanted = json.dumps(size | {"max_tokens": options.max_tokens, "reference": reference})
    command = [sys.executable, "-m", "tests.benchmarks.memory", "--one", wanted]
    peaks = []
    for _ in range(options.rounds):
        peaks.append(last_line(command, os.environ | CPU_ENVIRONMENT)["peak_gb"])
    return round(statistics.median(peaks), 3)


def step(vocabulary: int, length: int, pairs: int, max_tokens: int, reference: bool) -> dict[str, float]:
    import numpy as np
    import torch
    from torch.nn.functional import logsigmoid
    from transformers import LlamaConfig, LlamaForCausalLM

    from stages.logps.budget import fill
    from stages.logps.model import PairLogprobs
    from stages.logps.reading.loading import wrap

    torch.manual_seed(0)

    def model() -> PairLogprobs:
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=576, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=length, tie_word_embeddings=True,
        )  # fmt: skip
        return wrap(LlamaForCausalLM(config), "random")

    policy = model()
    other = model() if reference else None
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)
    half = length // 2  # of each sequence is prompt
    ids = torch.randint(5, vocabulary, (pairs, 3 * half)).tolist()
    rows = [(row[:half], row[half : 2 * half], row[2 * half :]) for row in ids]
    for piece in fill(np.full(pairs, 3 * half), max_tokens):
        layout = policy.lay_out(rows[piece])
        reference_logps = (torch.zeros(layout.num_pairs), torch.zeros(layout.num_pairs))
        if other is not None:
            with torch.no_grad():
                reference_logps = layout.sums(other(layout))
        chosen, rejected = layout.sums(policy(layout))
        logits = (chosen - rejected) - (reference_logps[0] - reference_logps[1])
        (-logsigmoid(0.1 * logits).sum() / pairs).backward()
    optimizer.step()
    return {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


if __name__ == "__main__":
    main()
