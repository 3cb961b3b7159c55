"""Follows a run from the driver, by the files that its workers write."""

import time
from threading import Event

from stages.progress import Progress
from stages.train.following.happened import Happened
from stages.train.following.metrics_log import START, MetricsLog
from stages.train.following.watch import say_where
from stages.train.job import Job

_LOOK_SECONDS = 0.3


class Follower:
    def __init__(self, job: Job, steps: int, progress: Progress):
        self._job, self._steps, self._progress = job, steps, progress
        self._metrics, self._position = MetricsLog(job.out / "metrics.jsonl"), START
        self._in_stall, self._step = False, 0

    def follow(self, finished: Event) -> None:
        """Tell of each step as it ends, of steps left out, and of stalls, until `finished`."""
        earlier, self._position = self._metrics.since(START)
        self._progress.start(self._steps, max((line["step"] for line in earlier), default=0), "steps")
        while not finished.wait(_LOOK_SECONDS):
            self._tell_steps()
            self._tell_stall()
        self._tell_steps()

    def _tell_steps(self) -> None:
        """After a rewind, all steps are told again: the last one told is where the run is."""
        lines, self._position = self._metrics.since(self._position)
        for line in lines:
            step = self._step = line.pop("step")
            if step and "loss" not in line:
                self._progress.notice(
                    f"step {step} is left out, because its loss or gradient is not finite; its pairs stand in "
                    f"{self._job.out / 'skipped.jsonl'}"
                )
            if step:
                seconds = line["step_seconds"]
                self._progress.made(line["pairs_per_second"] * seconds, line["tokens_per_second"] * seconds, seconds)
            self._progress.advance(step, **line)

    def _tell_stall(self) -> None:
        folder, seconds = self._job.out / ".stalls", self._job.resources.stall_seconds
        where = say_where(folder)
        if where and not self._in_stall:
            time.sleep(seconds / 5)  # for the other ranks to notice
            self._progress.notice(f"nothing has moved for {seconds:g} s\n{say_where(folder) or where}")
            more = f"for {seconds:g} s and longer"
            Happened(self._job.out).note({"step": self._step, "what": "stood still", "more": more})
        self._in_stall = where is not None
