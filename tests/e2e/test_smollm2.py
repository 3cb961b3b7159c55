"""The one real run: a real model, real triples, vLLM, two FSDP workers, by the command line."""

import math
import subprocess
import sys
from pathlib import Path

import yaml
from conftest import ROOT

from stages.artifacts import Manifest, PolicyCheckpoint


def test_the_demo_in_small(smollm2: Path, ray_cluster: str, tmp_path: Path) -> None:
    train = {"workers": 2, "max_tokens_per_microbatch": 512}
    score = {"cpus_per_actor": 2, "max_num_batched_tokens": 1024}  # that many the engine reads to warm up, or 8,192
    cluster = {"root": str(tmp_path), "address": ray_cluster, "score": score, "train": train}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    overrides = {"model": smollm2, "shard.limit": 12, "train.global_batch": 4, "train.max_steps": 1, "train.lr": 1e-5}
    overrides["score.accept.calibration_pairs"] = 4
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "run",
        "configs/recipes/demo.yaml",
        "--cluster",
        tmp_path / "cluster.yaml",
        "--until",
        "train",
    ]
    command += [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stdout + result.stderr
    (scored,), (trained,) = ((tmp_path / stage).iterdir() for stage in ("score", "train"))
    assert "off trainer" in result.stdout
    assert Manifest.read(scored).facts["calibration"]["per token"]["max"] < 1e-3  # vLLM against the forward of training
    policy = PolicyCheckpoint(trained)
    before, first = policy.metrics
    assert abs(first["loss"] - math.log(2)) < 1e-3
    assert first["check/ref_drift"] < 1e-3  # vLLM scored what torch trains
    assert first["eval/rewards/margins"] != before["eval/rewards/margins"]
    assert (policy.policy / "chat_template.jinja").read_text() == (smollm2 / "chat_template.jinja").read_text()
