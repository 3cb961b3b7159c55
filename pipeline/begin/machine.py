"""What this machine has: cores, memory, GPUs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline.look import machine


@dataclass(frozen=True)
class Machine:
    cpus: int
    memory: int | None  # bytes; None where the system does not tell
    gpus: int
    gpu_memory: int | None  # bytes of the smallest one; None where its driver does not tell
    gpu_name: str = ""

    @classmethod
    def here(cls) -> "Machine":
        found = machine()
        gpus = int(found.get("GPU", 0))
        name, gpu_memory = _nvidia() if gpus else ("", None)
        return cls(int(found["CPU"]), memory_here(), gpus, gpu_memory, name)

    @property
    def told(self) -> str:
        memory = f", {self.memory / 1e9:.0f} GB of memory" if self.memory else ""
        if not self.gpus:
            return f"{self.cpus} {'cores' if self.cpus > 1 else 'core'}{memory}, no GPU"
        each = f" of {self.gpu_memory / 1e9:.0f} GB each" if self.gpu_memory else ""
        return f"{self.gpus} {self.gpu_name or 'GPU'}{'s' if self.gpus > 1 else ''}{each}, {self.cpus} cores{memory}"


def memory_here() -> int | None:
    """Bytes of this machine, or of the container that this process is in, whichever is less."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    total = next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("MemTotal")) * 1024
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    given = [text for each in limits if each.exists() and (text := each.read_text().strip()).isdigit()]
    return min([total, *map(int, given)])


def _nvidia() -> tuple[str, int | None]:
    """(name, bytes of the smallest GPU), as the driver's own tool tells."""
    words = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout
        rows = [line.rsplit(",", 1) for line in told.splitlines() if line.strip()]
        return rows[0][0].strip(), min(int(memory) for _, memory in rows) * 2**20
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return "", None  # no tool, or one that cannot tell: then nothing is said of it
