"""Peak memory of one training process, with cached reference log-probs and with a reference model beside the policy.

Usage: python -m tests.benchmarks.memory [--model FOLDER] [--pairs 4] [--length 256] [--rounds 3]

Each measurement is its own process: a forward and backward pass and an AdamW step on random pairs, fp32, by the modules
that the train stage is made of. "live" loads the reference as well and scores the same pairs with it, as a trainer
without a score stage does. Prints a line a measurement, then one JSON object.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

MODEL = Path(__file__).parents[2] / ".models" / "SmolLM2-135M-Instruct"


def measure(options: argparse.Namespace, reference: str) -> dict[str, float]:
    arguments = ["--model", options.model, "--pairs", options.pairs, "--length", options.length, "--one", reference]
    command = [sys.executable, "-m", "tests.benchmarks.memory", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def one(options: argparse.Namespace) -> None:
    import torch

    from stages.logps.layout import pack
    from stages.logps.model import load
    from stages.train.loss import dpo_loss

    torch.manual_seed(0)
    ids = torch.randint(5, 1000, (options.pairs, 2 * options.length)).tolist()
    half = options.length // 2
    layout = pack([(row[:half], row[half : 2 * half], row[2 * half : 3 * half]) for row in ids])
    policy = load(str(options.model), "float32", options.length)
    optimizer = torch.optim.AdamW(policy.parameters())
    reference_logps = (torch.zeros(options.pairs), torch.zeros(options.pairs))
    if options.one == "live":
        reference = load(str(options.model), "float32", options.length)
        with torch.no_grad():
            reference_logps = layout.sums(reference(layout))
    dpo_loss(*layout.sums(policy(layout)), *reference_logps, beta=0.1).losses.mean().backward()
    optimizer.step()
    print(json.dumps({"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=["cached", "live"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options)
        return
    peaks: dict[str, list[float]] = {"cached": [], "live": []}
    for round_ in range(options.rounds):
        for reference, measured in peaks.items():
            measured.append(measure(options, reference)["peak_gb"])
            print(f"round {round_ + 1}  {reference:7}  {measured[-1]:.3f} GB", flush=True)
    cached, live = (statistics.median(measured) for measured in peaks.values())
    print(json.dumps({"cached_gb": round(cached, 3), "live_gb": round(live, 3), "ratio": round(cached / live, 3)}))


if __name__ == "__main__":
    main()
