"""What a few steps spend their time on, by torch.profiler."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

_BEFORE = 2  # steps of a run that are not looked at: they compile, and touch memory for the first time


@contextmanager
def profiled(path: Path, steps: int | None) -> Iterator[Callable[[], None]]:
    """Gives what is to be called after each step. After `steps` of them there is a trace at `path`, of this rank, for
    chrome://tracing or ui.perfetto.dev; earlier, if the context ends before. None: no trace.
    """
    if steps is None:
        yield lambda: None
        return
    path.parent.mkdir(exist_ok=True)
    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])],
        schedule=schedule(wait=_BEFORE - 1, warmup=1, active=steps, repeat=1),
        on_trace_ready=lambda ready: ready.export_chrome_trace(str(path)),
    ) as profiler:
        yield profiler.step
