"""The shard stage beside `datasets.map(batched=True, num_proc=2)`; how time and memory grow with pairs.

Usage: python -m tests.benchmarks.shard [--pairs 200000] [--rounds 3] [--growth 100000 400000 1600000] [--files 1]

Triples of random words of the embedded demo, with rare ones among them, about 345 tokens a pair as scoring reads it,
the prompt twice: of messages, which SmolLM2's chat template renders, and of plain strings. Each measurement is a
process of its own, and the two take turns.

- The stage: the call of `shard` on an embedded cluster, from JSONL on disk to parts, rejects and facts. The start of
  Ray's workers and the loading of the tokenizer in them are in it; Ray's own start before it is told by itself.
- datasets: the call of `map` alone, which tokenizes prompt, chosen and rejected, rendered before, from a set on disk.
- growth: seconds a pair, and the peak of the memory of driver and workers together, at the largest number of pairs over
  those at the smallest. Memory is what is not a page of a file (RssAnon and RssShmem).
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from stages.cpu_environment import CPU_ENVIRONMENT
from tests.benchmarks.inputs import MODEL, ROOT
from tests.benchmarks.process import last_line

Row = dict[str, Any]
COLUMNS = ("prompt", "chosen", "rejected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="whose tokenizer and template it is")
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", type=int, nargs="*", default=[100_000, 400_000, 1_600_000])
    parser.add_argument("--shapes", nargs="*", default=["conversational", "plain"])
    parser.add_argument("--files", type=int, default=1, help="that hold the triples")
    parser.add_argument("--do", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        task = options.do.pop("task")
        print(json.dumps({"stage": run_stage, "datasets": run_datasets}[task](**options.do)))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for shape in options.shapes if options.rounds else []:
            prefix = "" if shape == options.shapes[0] else f"{shape}_"
            found |= {f"{prefix}{name}": value for name, value in compare(options, shape, Path(scratch)).items()}
        if options.growth:
            found |= growth(options, Path(scratch))
    print(json.dumps(found))


def compare(options: argparse.Namespace, shape: str, scratch: Path) -> dict[str, Any]:
    with folder_of(scratch, shape) as work:
        rows = list(triples(options.pairs, shape))
        write(rows, work / "triples", options.files)
        save_rendered(rows, options.model, work / "rendered")
        del rows
        ours, theirs, starts = [], [], []
        for each in range(options.rounds):
            made = measure("stage", options, work, shape=shape)
            ours.append(options.pairs / made["seconds"])
            starts.append(made["ray_start_s"])
            theirs.append(options.pairs / measure("datasets", options, work)["seconds"])
            print(
                f"{shape}, round {each + 1}: {ours[-1]:.0f} pairs/s, {made['tokens_a_pair']:.0f} tokens each, "
                f"{made['gb']:.2f} GB; datasets {theirs[-1]:.0f} rows/s",
                flush=True,
            )
    return {
        "pairs_per_s": round(statistics.median(ours), 1),
        "datasets_rows_per_s": round(statistics.median(theirs), 1),
        "over_datasets": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3),
        "ray_start_s": round(statistics.median(starts), 1),
    }


def growth(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    found = []
    for count in options.growth:
        with folder_of(scratch, f"growth-{count}") as work:
            write(triples(count, options.shapes[0]), work / "triples", options.files)
            made = measure("stage", options, work, shape=options.shapes[0])
        found.append({"pair_ms": 1e3 * made["seconds"] / count, "gb": made["gb"]})
        print(f"{count} pairs: {found[-1]['pair_ms']:.3f} ms a pair, {made['gb']:.2f} GB", flush=True)
    return {
        "growth": round(found[-1]["pair_ms"] / found[0]["pair_ms"], 3),
        "memory_growth": round(found[-1]["gb"] / found[0]["gb"], 3),
    }


@contextmanager
def folder_of(scratch: Path, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=scratch) as folder:
        yield Path(folder)


def triples(count: int, shape: str) -> Iterator[Row]:
    """The same ones each time."""
    words = [
        word
        for line in (ROOT / "configs" / "data" / "demo_triples.jsonl").read_text().splitlines()
        for column in COLUMNS
        for word in json.loads(line)[column][0]["content"].split()
    ]
    chance = random.Random(0)

    def text(shortest: int, longest: int) -> str:
        chosen = chance.choices(words, k=chance.randint(shortest, longest))
        for at in range(chance.randrange(30), len(chosen), 30):  # one in thirty was hardly ever seen before
            chosen[at] = f"{chosen[at][:3]}{chance.randrange(10_000)}"
        return " ".join(chosen)

    for _ in range(count):
        texts = {"prompt": text(10, 50), "chosen": text(20, 130), "rejected": text(20, 130)}
        if shape == "plain":
            yield texts | {"chosen": f" {texts['chosen']}", "rejected": f" {texts['rejected']}"}
        else:
            yield {
                column: [{"role": "user" if column == "prompt" else "assistant", "content": content}]
                for column, content in texts.items()
            }


def write(rows: Any, folder: Path, files: int) -> None:
    """JSONL, row after row to the files in turn."""
    folder.mkdir()
    opened = [(folder / f"{number:03d}.jsonl").open("w") for number in range(files)]
    for number, row in enumerate(rows):
        opened[number % files].write(json.dumps(row) + "\n")
    for file in opened:
        file.close()


def save_rendered(rows: list[Row], model: Path, folder: Path) -> None:
    """What datasets is given: texts, in which nothing is left to be rendered."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def rendered() -> Iterator[Row]:
        for row in rows:
            if isinstance(row["prompt"], str):
                yield row
                continue
            prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            whole = [tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False) for side in COLUMNS[1:]]
            yield dict(zip(COLUMNS, [prompt, *(text[len(prompt) :] for text in whole)], strict=True))

    texts = list(rendered())
    Dataset.from_dict({column: [row[column] for row in texts] for column in COLUMNS}).save_to_disk(folder)


def measure(task: str, options: argparse.Namespace, work: Path, **further: Any) -> dict[str, Any]:
    what = {"task": task, "work": str(work), "model": str(options.model)} | further
    command = [sys.executable, "-m", "tests.benchmarks.shard", "--do", json.dumps(what)]
    return last_line(command, os.environ | (CPU_ENVIRONMENT if task == "stage" else {}))


def run_stage(work: str, model: str, shape: str) -> dict[str, Any]:
    from pipeline.cluster.connection import connected
    from pipeline.recipe.sections import Cluster

    began = time.perf_counter()
    # "local": a cluster of its own. Without an address Ray joins one that runs on this machine, whosever it is.
    with tempfile.TemporaryDirectory(dir=work) as out, connected(Cluster(address="local"), verbose=False):
        from stages.shard.config import ShardConfig, ShardResources
        from stages.shard.run import shard

        ready = time.perf_counter()
        with peak_memory() as peak:
            facts = shard(
                ShardConfig(source=f"{work}/triples", tokenizer=model, max_length=1024),
                out=Path(out),
                resources=ShardResources(),
            )
        seconds = time.perf_counter() - ready
    assert facts["rows"] - sum(facts["dropped"].values()) == facts["pairs"], facts
    assert shape != "plain" or facts["shape"] == "explicit", facts
    return {
        "seconds": seconds,
        "ray_start_s": ready - began,
        "tokens_a_pair": facts["tokens"] / facts["pairs"],
        "gb": peak[0] / 1e9,
    }


def run_datasets(work: str, model: str) -> dict[str, Any]:
    import datasets
    from transformers import AutoTokenizer

    tokenizer, rows = AutoTokenizer.from_pretrained(model), datasets.load_from_disk(f"{work}/rendered")

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {f"{name}_ids": tokenizer(batch[name], add_special_tokens=False)["input_ids"] for name in COLUMNS}

    datasets.disable_caching()
    began = time.perf_counter()
    made = rows.map(tokenize, batched=True, num_proc=2, remove_columns=list(COLUMNS))
    assert len(made) == len(rows)
    return {"seconds": time.perf_counter() - began}


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Bytes of this process and Ray's workers under it together, at their most."""
    peak, done = [0], Event()

    def look() -> None:
        while not done.wait(0.25):
            peak[0] = max(peak[0], memory_of(os.getpid(), own=True))

    looking = Thread(target=look, daemon=True)
    looking.start()
    try:
        yield peak
    finally:
        done.set()
        looking.join()


def memory_of(pid: int, own: bool = False) -> int:
    """Of a process, if it is `own` or a Ray worker, and of all under it."""
    try:
        is_worker = Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for thread in Path(f"/proc/{pid}/task").iterdir():
            if thread.name != str(pid):
                children += (thread / "children").read_text().split()
    except OSError:  # it has ended
        return 0
    lines = [line.split() for line in status.splitlines() if line.startswith(("RssAnon:", "RssShmem:"))]
    bytes_ = sum(int(line[1]) for line in lines) * 1024 if own or is_worker else 0
    return bytes_ + sum(memory_of(int(child)) for child in children)


if __name__ == "__main__":
    main()
