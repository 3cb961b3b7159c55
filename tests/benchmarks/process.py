"""A measurement is a process of its own."""

import json
import subprocess
import sys
from typing import Any

from tests.benchmarks.inputs import ROOT


def last_line(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """The JSON object in the last line that `command` prints; exits with its errors where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
