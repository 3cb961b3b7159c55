"""What the driver does for each part: planning, listing, digests, known pairs, rejects, and giving parts to actors.

Usage: python -m tests.benchmarks.driver [--parts 100,10000,100000] [--given 100,1000,10000] [--nodes 1,10,100]
       [--work FOLDER]

Artifacts are made of copies of one small part, 8 pairs of 40 tokens: so what is measured is the cost of a part, and not
of its rows. Each number of parts is a process of its own, on a local disk, whose pages are in memory. `given` are parts
that two actors report at once, without any work on them: what Ray's scheduling costs. `nodes` are real nodes of Ray, a
raylet and an actor each, that report 1,000 parts: as they share this machine's cores, it is the CPU time that counts,
of the driver and of what the head runs, and not how long it takes. A node takes some 0.4 GB.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from pipeline.identity import Digests
from pipeline.plan import identify, plan
from pipeline.recipe.load import load
from pipeline.store import Store, damage
from stages.artifacts import Manifest, PreferencePairs, ReferenceLogprobs
from stages.names import part_name
from stages.pool.actors import follow, reports
from stages.progress import Silent
from tests.benchmarks.inputs import ROOT, random_pairs, tiny_model
from tests.benchmarks.process import last_line

ROWS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=numbers, default=[100, 10_000, 100_000])
    parser.add_argument("--given", type=numbers, default=[100, 1_000, 10_000])
    parser.add_argument("--nodes", type=numbers, default=[1, 10])
    parser.add_argument("--work", type=Path, help="where artifacts are made; left out, in the system's place for that")
    parser.add_argument("--do", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        kind, number, work = options.do
        print(json.dumps({"files": on_files, "ray": on_ray, "nodes": on_nodes}[kind](number, Path(work))))
        return
    for kind, several in (("files", options.parts), ("ray", options.given), ("nodes", options.nodes)):
        for number in several:
            with tempfile.TemporaryDirectory(dir=options.work) as work:
                _names(Path(work))
                command = [sys.executable, "-m", "tests.benchmarks.driver", "--do", json.dumps([kind, number, work])]
                print(json.dumps(last_line(command, {**os.environ})), flush=True)


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


class Clock:
    """Microseconds a part of what is done under a name."""

    def __init__(self, parts: int):
        self.parts = parts
        self.found: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.found[name] = round((time.perf_counter() - began) / self.parts * 1e6, 1)
        print(name, self.found[name], _peak(), file=sys.stderr, flush=True)


def on_files(parts: int, work: Path) -> dict[str, Any]:
    from stages.score.part_scorer import facts_of, reported, reports_of
    from stages.score.reference import reference_of
    from stages.score.run import _write_rejects

    clock, store = Clock(parts), Store.open(str(work / "root"), str(work / "root"))
    recipe = _recipe(work, max_length=128)
    ids = identify(recipe, Digests(None))
    random_pairs(work / "one", ROWS, (20, 10, 10), ROWS)
    _copies(work / "one/pairs/part-00000.parquet", store.draft("shard", ids["shard"].fingerprint), parts)
    _copies(work / "one/logprobs/part-00000.parquet", scored := store.draft("score", ids["score"].fingerprint), parts)
    facts = {"pairs": ROWS * parts, "train": ROWS * parts, "eval": 0, "longest": 128, "largest_id": 500, "tokens": 40}
    for stage in ("shard", "score"):
        with clock(f"commit of {stage}: listing, digests, rows"):
            store.commit(stage, ids[stage].fingerprint, ids[stage].payload, facts, 0.0, {})
    with clock("manifest read"):
        manifest = Manifest.read(scored)
    with clock("plan, all hits"):
        plan(recipe, store)
    with clock("verify"):
        assert not damage(scored, manifest, content=True)
    # Other pairs for the same reference: which of them are known?
    other = _recipe(work, max_length=127)
    again = identify(other, Digests(None))["shard"]
    shutil.copytree(store.folder("shard", ids["shard"].fingerprint), store.draft("shard", again.fingerprint))
    (store.draft("shard", again.fingerprint) / "manifest.json").unlink()
    store.commit("shard", again.fingerprint, again.payload, facts, 0.0, {})
    with clock("plan, with known pairs counted"):
        assert "0 of" in next(step.why for step in plan(other, store) if step.name == "score")
    reports_of(scored).mkdir()
    pairs = PreferencePairs(store.folder("shard", ids["shard"].fingerprint))
    reference = reference_of(pairs.read(part_name(0)), ReferenceLogprobs(scored).read_unchecked(part_name(0)))
    report = {
        "pairs": ROWS,
        "scored": ROWS,
        "tokens": 40,
        "unscored": 0,
        "path": "vllm",
        "seconds": 0.1,
        "loading": 0.0,
    }
    report |= {"peak_memory_gb": 1.0, "reference": reference}
    for number in range(parts):
        told = report | {"part": part_name(number), "actor": f"node-{number % 64}"}
        (reports_of(scored) / f"{part_name(number)}.json").write_text(json.dumps(told))
    with clock("end of score: reports, rejects"):
        told = reported(scored)
        _write_rejects(pairs, scored, {each["part"] for each in told})
        facts_of(told)
    with clock("reports followed"):
        follow(iter(told), parts, parts, 64, ("pairs", "tokens"), Silent())
    return {"parts": parts, "microseconds a part": clock.found} | _peak()


def on_ray(parts: int, work: Path) -> dict[str, Any]:
    import ray

    from stages.score.config import ScoreResources

    clock = Clock(parts)
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    list(reports([part_name(0)], Nothing, None, ScoreResources(actors=2)))  # processes are there
    with clock("given to actors, and reported"):
        found = reports([part_name(number) for number in range(parts)], Nothing, None, ScoreResources(actors=2))
        follow(found, parts, parts, 2, ("pairs", "tokens"), Silent())
    assert work.exists()
    return {"parts": parts, "microseconds a part": clock.found} | _peak()


def on_nodes(count: int, work: Path) -> dict[str, Any]:
    import psutil
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from stages.score.config import ScoreResources

    os.environ |= {"RAY_health_check_timeout_ms": "60000"}  # so many processes on two cores are slow to answer
    head = {"num_cpus": 0, "include_dashboard": False, "include_log_monitor": False, "object_store_memory": 2 * 10**8}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    for _ in range(count):
        nodes.add_node(wait=False, num_cpus=1, include_log_monitor=False, object_store_memory=8 * 10**7)
    nodes.wait_for_nodes(timeout=600)
    ray.init(nodes.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    ray.data.DataContext.get_current().enable_progress_bars = False
    pool = ScoreResources(actors=count)
    parts = [part_name(number) for number in range(1000)]
    list(reports(parts[:count], Nothing, None, pool))  # code and processes are there
    heads = {kind: psutil.Process(each.process.pid) for kind, (each, *_) in nodes.head_node.all_processes.items()}
    names = {"gcs_server": "GCS", "raylet": "raylet of the head"}

    def busy() -> dict[str, float]:
        told = {name: sum(heads[kind].cpu_times()[:2]) for kind, name in names.items()}
        return told | {"driver": time.process_time()}

    before, began = busy(), time.perf_counter()
    follow(reports(parts, Nothing, None, pool), len(parts), len(parts), count, ("pairs", "tokens"), Silent())
    seconds = time.perf_counter() - began
    spent = {name: round((value - before[name]) / len(parts) * 1e6) for name, value in busy().items()}
    ray.shutdown()
    nodes.shutdown()
    assert work.exists()
    return {
        "nodes": count,
        "parts": len(parts),
        "seconds": round(seconds, 1),
        "CPU microseconds a part": spent,
    } | _peak()


class Nothing:
    """An actor that has a report at once."""

    def __init__(self, job: Any):
        self.job = job

    def __call__(self, batch: pa.Table) -> pa.Table:
        report = {
            "part": batch["part"][0].as_py(),
            "actor": "a",
            "pairs": 8,
            "tokens": 40,
            "seconds": 0.0,
            "unscored": 0,
        }
        return pa.Table.from_pylist([report])


def _recipe(work: Path, max_length: int) -> Any:
    sections = {
        "model": str(work / "model"),
        "shard": {"source": str(work / "triples.jsonl"), "max_length": max_length},
        "score": {"backend": "torch", "accept": {"calibration_pairs": 0}},
        "train": {"global_batch": 8, "lr": 1e-6},
    }
    (work / "recipe.yaml").write_text(yaml.safe_dump(sections))
    return load(work / "recipe.yaml", ROOT / "configs/clusters/laptop.yaml", [])[0]


def _names(work: Path) -> None:
    """What a recipe names; in this process, as torch has no place in the memory of what is measured."""
    tiny_model(work / "model")
    (work / "model" / "tokenizer.json").write_text("{}")
    (work / "triples.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')


def _copies(part: Path, folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    content = part.read_bytes()
    for number in range(count):
        (folder / part_name(number)).write_bytes(content)


def _peak() -> dict[str, float]:
    return {"peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)}


if __name__ == "__main__":
    main()
