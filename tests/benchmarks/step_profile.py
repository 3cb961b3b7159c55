"""Where the time of a training step goes, on the same pairs as in train.py; or that of scoring them.

Usage: python -m tests.benchmarks.step_profile [--sets hh long] [--scoring]

Each set is its own process: the steps of the set warm it up, and the last one is done again under torch.profiler; of
scoring, all pairs are done twice. Time is that of the thread that computes, in each operator without what it calls.
"compiled" is what torch.compile has fused of the layers, the memory that it asks for included. Page faults are a cost
within the others: memory that the step touches for the first time.
"""

import argparse
import json
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.cpu_environment import CPU_ENVIRONMENT
from tests.benchmarks import train
from tests.benchmarks.process import last_line

KINDS = {  # of an operator's name, whichever comes first
    "attention": ("attention", "OneByOne"),
    "products": ("product", "linear_pointwise", "aten::mm", "aten::addmm", "aten::linear", "Linear"),
    "optimizer, clipping": ("adam", "Optimizer", "_foreach", "linalg_vector_norm"),
    "gradients, added up": ("AccumulateGrad", "aten::add", "index_add"),
    "softmax of the head": ("TargetLogps", "exp_", "aten::log", "amax", "aten::sum", "scatter", "gather", "sub", "div"),
    "compiled": ("Compile", "compile", "Dynamo"),
    "copies, zeros": ("copy", "clone", "cat", "index", "contiguous", "fill", "zero"),
    "the rest": ("",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    train.add_options(parser)
    parser.add_argument("--scoring", action="store_true", help="by the torch scorer, instead of a step")
    parser.add_argument("--one", choices=["training", "scoring"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps({"training": training, "scoring": scoring}[options.one](options)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-profile-") as scratch:
        for name, count in zip(options.sets, options.pairs, strict=False):
            options.work = Path(scratch) / name
            options.work.mkdir()
            train.prepare(name, count, options)
            what = ["--one", "scoring" if options.scoring else "training"]
            show(name, last_line(train.child("step_profile", what, options), os.environ | CPU_ENVIRONMENT))


def show(name: str, found: dict[str, Any]) -> None:
    total = sum(found["seconds"].values())
    print(f"{name}: {found['tokens']} tokens in {total:.2f} s; {found['faults']:,} page faults, ", end="")
    print(f"{found['system']:.2f} s in the system")
    shares = f"all of it {found['share']:.2f}, its products and attention alone {found['products_share']:.2f}"
    print(f"  of the products' peak: {shares}")
    for kind, seconds in sorted(found["seconds"].items(), key=lambda each: -each[1]):
        print(f"  {kind:24} {seconds:6.2f} s  {100 * seconds / total:5.1f} %  {', '.join(found['names'][kind])}")


def training(options: argparse.Namespace) -> dict[str, Any]:
    train.score(options)
    trainer = train.trainer_of(options)
    steps = len(trainer.pairs) // trainer.config.global_batch
    for step in range(1, steps + 1):
        trainer.step(step, steps)
    tokens, flops = train.work_of(trainer, trainer.order.batch_at(steps))
    return watched(lambda: trainer.step(steps, steps), tokens, flops, options)


def scoring(options: argparse.Namespace) -> dict[str, Any]:
    from stages.artifacts import PreferencePairs
    from stages.score.config import ScoreConfig, ScoreResources
    from stages.score.torch_scorer import TorchScorer
    from tests.benchmarks.score import operations

    pairs = PreferencePairs(options.work / "pairs")
    table = pairs.read(pairs.parts[0])
    config = ScoreConfig(model=str(options.model), backend="torch", dtype=options.dtype)
    resources = ScoreResources(compile=True, cpus_per_actor=os.cpu_count() or 1)
    scorer = TorchScorer(config, resources, options.max_length)
    scorer.token_logps(table)
    rows = table.to_pylist()
    tokens = sum(len(row[f"{name}_ids"]) for row in rows for name in ("prompt", "chosen", "rejected"))
    flops = sum(operations(scorer.model, row) for row in rows)
    return watched(lambda: scorer.token_logps(table), tokens, flops, options)


def watched(work: Callable[[], object], tokens: int, flops: float, options: argparse.Namespace) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    before = resource.getrusage(resource.RUSAGE_SELF)
    with profiler(activities=[ProfilerActivity.CPU]) as seen:
        work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = dict.fromkeys(KINDS, 0.0)
    names: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    for event in seen.key_averages():
        kind = next(kind for kind, parts in KINDS.items() if any(part in event.key for part in parts))
        seconds[kind] += event.self_cpu_time_total / 1e6
        names[kind][event.key] = event.self_cpu_time_total
    peak = train.peak(options)["ours"]
    return {
        "seconds": seconds,
        "names": {kind: sorted(each, key=each.__getitem__, reverse=True)[:4] for kind, each in names.items()},
        "tokens": tokens,
        "share": flops / sum(seconds.values()) / peak,
        "products_share": flops / (seconds["products"] + seconds["attention"]) / peak,
        "faults": after.ru_minflt - before.ru_minflt,
        "system": after.ru_stime - before.ru_stime,
    }


if __name__ == "__main__":
    main()
