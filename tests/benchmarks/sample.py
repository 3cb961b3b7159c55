"""Sampling through the stage beside the bare engine.

Usage: python -m tests.benchmarks.sample [--rounds 3] [--prompts 500] [--samples 4] [--tokens 64] [--actors 2]

Every measurement is its own process, and the two take turns. Both read the same file of prompts, load the model and
draw the same completions on all cores: the engine in one process, the stage in `--actors` of them (as many as there are
cores, where not said) on a Ray cluster that is there. Prints a line a measurement, then one JSON object: tokens/s of
the stage over those of the engine, as medians, of all and of the time after the first token.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stages.cpu_environment import CPU_ENVIRONMENT
from tests.benchmarks.inputs import MODEL, ROOT
from tests.benchmarks.process import last_line

_ASKED = ("{}", "In one sentence: {}", "In two sentences: {}", "As to a child: {}", "As to a friend: {}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--actors", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--do", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        print(json.dumps(DO[options.do](options)))
        return
    lines = [line for line in (ROOT / "infra/demo/prompts.txt").read_text().splitlines() if line.strip()]
    asked = [form.format(line) for form, line in itertools.product(_ASKED, lines)][: options.prompts]
    found: dict[str, list[dict[str, Any]]] = {"engine": [], "stage": []}
    with tempfile.TemporaryDirectory(prefix="bench-sample-") as scratch:
        prompts = Path(scratch) / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in asked))
        for number in range(options.rounds):
            for what in ("stage", "engine") if number % 2 else ("engine", "stage"):
                work = Path(scratch) / f"{what}-{number}"
                found[what].append(measure(what, options, prompts, work))
                last = found[what][-1]
                print(
                    f"round {number + 1}, {what:6}: {last['tokens']} tokens in {last['seconds']:.1f} s, "
                    f"{last['loading']:.1f} s of them before the first",
                    flush=True,
                )
    same = {each["digest"] for several in found.values() for each in several}
    pairs = list(zip(found["stage"], found["engine"], strict=True))
    speed = {what: [each["tokens"] / each["seconds"] for each in several] for what, several in found.items()}
    result = {
        "stage_over_engine": statistics.median(b["seconds"] / a["seconds"] for a, b in pairs),
        "without_loading": statistics.median(
            (b["seconds"] - b["loading"]) / (a["seconds"] - a["loading"]) for a, b in pairs
        ),
        "tokens_per_s": {what: statistics.median(values) for what, values in speed.items()},
    }
    asked_for = {"prompts": len(asked), "samples": options.samples, "actors": options.actors}
    print(json.dumps(result | asked_for | {"same_completions": len(same) == 1}))


def measure(what: str, options: argparse.Namespace, prompts: Path, work: Path) -> dict[str, Any]:
    work.mkdir()
    (work / "prompts.jsonl").write_text(prompts.read_text())
    command = [sys.executable, "-m", "tests.benchmarks.sample", "--do", what, "--work", str(work)]
    for name in ("samples", "tokens", "actors", "model"):
        command += [f"--{name}", str(getattr(options, name))]
    # As start_engine sets it, which is too late in a process that has imported torch to read prompts.
    return last_line(command, os.environ | CPU_ENVIRONMENT | {"TORCH_COMPILE_DISABLE": "1"})


def config_of(options: argparse.Namespace) -> Any:
    from stages.sample.config import SampleConfig

    model = str(options.model)
    return SampleConfig(
        source=str(options.work / "prompts.jsonl"), tokenizer=model, models=(model,), dtype="float32",
        num_samples=options.samples, max_tokens=options.tokens,
    )  # fmt: skip


def by_engine(options: argparse.Namespace) -> dict[str, Any]:
    """All prompts in one call, in the order of their ids."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.engine.generation import Generator
    from stages.sample.config import SampleResources
    from stages.sample.prompts import write_prompts

    config = config_of(options)
    began = time.perf_counter()
    facts = write_prompts(config, options.work / "prompts")
    parts = sorted((options.work / "prompts").glob("part-*.parquet"))
    table = pa.concat_tables([pq.read_table(path) for path in parts]).sort_by("prompt_id")
    asked = list(zip(table["prompt_id"].to_pylist(), table["prompt_ids"].to_pylist(), strict=True))
    resources = SampleResources(cpus_per_actor=os.cpu_count() or 1)
    engine = Generator(config.models[0], config.dtype, facts["longest"], config, resources)
    loaded = time.perf_counter()
    made = engine.generate(asked)
    done = time.perf_counter()
    ids = [each.ids for several in made for each in several]
    return {
        "tokens": sum(map(len, ids)), "seconds": done - began, "loading": loaded - began, "digest": digest_of(ids),
    }  # fmt: skip


def by_stage(options: argparse.Namespace) -> dict[str, Any]:
    from pipeline.cluster.connection import connected
    from pipeline.recipe.sections import Cluster

    with connected(Cluster(), verbose=False):
        from stages.sample.config import SampleResources
        from stages.sample.run import sample

        config, out = config_of(options), options.work / "out"
        cores = max(1, (os.cpu_count() or 1) // options.actors)
        resources = SampleResources(actors=options.actors, cpus_per_actor=cores)
        began = time.perf_counter()
        facts = sample(config, out=out, resources=resources)
        seconds = time.perf_counter() - began
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))])
    ids = table.sort_by([("prompt_id", "ascending"), ("sample", "ascending")])["ids"].to_pylist()
    drawing = max(actor["seconds"] - actor["loading"] for actor in facts["actors"].values())
    return {"tokens": facts["tokens"], "seconds": seconds, "loading": seconds - drawing, "digest": digest_of(ids)}


def digest_of(ids: list[list[int]]) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


DO = {"engine": by_engine, "stage": by_stage}

if __name__ == "__main__":
    main()
