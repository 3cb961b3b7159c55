"""What Prometheus sees of a stage, on the metrics port of a real cluster; and whether Grafana's questions are of it."""

import json
import re
import time
import urllib.request
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from conftest import ROOT, make_project

from pipeline.plan import plan
from pipeline.recipe.load import load
from pipeline.runner import run
from pipeline.store import Store
from pipeline.view.following.meters import COUNTERS, GAUGES, Metered
from stages.progress import Silent

Samples = dict[tuple[str, str], float]  # (name, stage and unit) -> value


def scraped() -> Samples:
    """Of all nodes, as Prometheus would."""
    found: Samples = {}
    for node in ray.nodes():
        with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as page:
            for line in page.read().decode().splitlines():
                if match := re.match(r"(\w+)(?:\{(.*)\})? (\S+)$", line):
                    labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                    found[match[1], " ".join(labels[key] for key in ("stage", "unit") if key in labels)] = float(
                        match[3]
                    )
    return found


@pytest.fixture(scope="module")
def seen(ray_cluster: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Samples:  # noqa: ARG001
    """After a real shard stage, and a step of training as the follower tells it."""
    project = make_project(tmp_path_factory.mktemp("metered"), tiny_model)
    recipe, cluster = load(project.recipe, project.cluster, [])
    store = Store.open(cluster.root, cluster.work)
    steps = [replace(step, round=9) for step in plan(recipe, store) if step.name == "shard"]  # no other test has that
    list(run(steps, ["shard-9"], cluster, store, nullcontext, lambda _: nullcontext(Silent()), print))
    training = Metered(Silent(), "train-2")
    training.start(6, 2, "steps")
    training.made(rows=5, tokens=400, seconds=2.5, rejected=1)
    training.advance(
        3, loss=0.6, tokens_per_second=160.0, peak_memory_gb=0.5, actors=1, grad_norm=3.0, batch="abc",
        **{"rewards/margins": 0.25, "rewards/accuracies": 0.75},
    )  # fmt: skip
    deadline, samples = time.monotonic() + 120, scraped()
    wanted = {
        ("ray_raydpo_loss", "train-2"),
        ("ray_raydpo_rows_total", "shard-9"),
        ("ray_raydpo_tokens_total", "train-2"),
        ("ray_node_mem_used", ""),  # Ray's own of a node: they come by another way, every some seconds
    }
    while not wanted <= samples.keys() and time.monotonic() < deadline:
        time.sleep(0.5)
        samples |= scraped()  # a node whose agent is late has lost its gauges for a while
    return samples


def test_prometheus_sees_a_stage(seen: Samples) -> None:
    assert seen["ray_raydpo_done", "shard-9 parts"] == seen["ray_raydpo_planned", "shard-9 parts"] == 4
    assert seen["ray_raydpo_rows_total", "shard-9"] == 40
    assert seen["ray_raydpo_tokens_total", "shard-9"] > 1000
    assert ("ray_raydpo_rejected_total", "shard-9") not in seen  # none
    assert (seen["ray_raydpo_done", "train-2 steps"], seen["ray_raydpo_planned", "train-2 steps"]) == (3, 6)
    assert seen["ray_raydpo_loss", "train-2"] == 0.6
    assert seen["ray_raydpo_seconds_total", "train-2"] == 2.5


def test_each_metric_is_there(seen: Samples) -> None:
    names = {name for name, _ in seen}
    assert {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS} <= names


def test_the_dashboard_asks_for_metrics_that_are_there(seen: Samples) -> None:
    board = json.loads((ROOT / "infra/grafana/raydpo.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    names = {name for expression in asked for name in re.findall(r"\bray_\w+", expression)}
    assert len(names) > 10
    assert names <= {name for name, _ in seen}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
