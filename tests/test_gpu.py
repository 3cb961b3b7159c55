"""`python -m tests.gpu`, on the CPU and in small: all its rows hold, and it asks for no package that a bare GPU machine
lacks."""

import subprocess
import sys

from conftest import ROOT

LACKING = ("ray", "vllm", "datasets", "upath", "s3fs", "rensa", "gguf", "wandb", "typer", "moto", "trl")
START = "import runpy, sys; sys.modules.update(dict.fromkeys(%r)); runpy.run_module('tests.gpu', run_name='__main__')"


def test_all_rows_hold_on_a_cpu() -> None:
    command = [sys.executable, "-c", START % (LACKING,), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    for part in ("llama: log-probs", "attention, heads of", "head in bfloat16", "graph breaks", "as exported", "lora"):
        assert part in done.stdout, part
