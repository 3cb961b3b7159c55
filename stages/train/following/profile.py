"""What a few steps spend their time on, by torch.profiler."""

from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

_BEFORE = 2  # steps of a run that are not looked at: they compile, and touch memory for the first time


class Profile:
    """A context in which `step` is told of each step that has ended. After `steps` of them there is a trace at `path`,
    of this rank, for chrome://tracing or ui.perfetto.dev; earlier, if the context ends before. None: no trace.
    """

    def __init__(self, path: Path, steps: int | None):
        self._profiler = None
        if steps is not None:
            path.parent.mkdir(exist_ok=True)
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profiler = profile(
                activities=kinds,
                schedule=schedule(wait=_BEFORE - 1, warmup=1, active=steps, repeat=1),
                on_trace_ready=lambda ready: ready.export_chrome_trace(str(path)),
            )

    def step(self) -> None:
        if self._profiler is not None:
            self._profiler.step()

    def __enter__(self) -> "Profile":
        if self._profiler is not None:
            self._profiler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profiler is not None:
            self._profiler.stop()
