"""What each Ray Train worker runs: all steps that are left, with checkpoints, metrics and a watch over stalls."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict

import torch
import torch.distributed as dist
from filelock import FileLock

from stages.errors import ContractError
from stages.train.best import Best, score
from stages.train.following.happened import Happened
from stages.train.following.metrics_log import Metrics, MetricsLog
from stages.train.following.profile import profiled
from stages.train.following.watch import Watch
from stages.train.job import Job
from stages.train.pairs.shares import num_steps
from stages.train.policy.checkpoints import Checkpoints
from stages.train.policy.export import export_policy
from stages.train.trainer import Trainer


class Worker:
    """One rank. `is_preempted`: whether the machines have been told to go; asked by all ranks at once."""

    def __init__(self, job: Job, is_preempted: Callable[[], bool] = lambda: False):
        self.job, self.is_preempted = job, is_preempted
        self.watch = Watch(job.out / ".stalls", dist.get_rank(), dist.get_world_size(), job.resources.stall_seconds)
        self.trainer = Trainer(job, self.watch.beat)
        self.metrics, self.happened = MetricsLog(job.out / "metrics.jsonl"), Happened(job.out)
        self.checkpoints = Checkpoints(
            job.out / "checkpoints", job.identity, job.resources.keep_checkpoints, job.config.trains_all,
            self.trainer.device,
        )  # fmt: skip
        self.best = Best()
        self._told = False  # to go

    def run(self) -> None:
        """All steps that are left, and the export."""
        trainer, config = self.trainer, self.job.config
        with self._alone():
            total, done = num_steps(len(trainer.pairs), config), self._resume()
            trace = self.job.out / "profile" / f"rank-{trainer.rank}.json.gz"
            with self.watch.watching(), profiled(trace, self.job.resources.profile_steps) as step_ended:
                if done is None:
                    self._log({"step": 0} | self._first_look())
                step = done or 0
                while step < total and not self.best.says_stop(config) and not self._pauses(step):
                    step += 1
                    self._step(step, total)
                    step_ended()
            self.checkpoints.wait()
            if self._pauses(step) and step < total and not self.best.says_stop(config):
                trainer.close()
                return
            if config.export == "best" and self.best.step not in (None, step):
                self.checkpoints.load(self.best.step, trainer.model, trainer.optimizer)
            trainer.close()
            export_policy(self.job.out / "policy", trainer.model, config)

    def _pauses(self, step: int) -> bool:
        return self.job.resources.pause_at is not None and step >= self.job.resources.pause_at

    def _first_look(self) -> Metrics:
        """Before the first step. Raises ContractError where the metric that will be asked for is not there."""
        config, metrics = self.job.config, self.trainer.evaluate()
        if config.looks_for_best and config.best_metric not in metrics:
            known = ", ".join(metrics) or "none, as no pair is held out: set shard.eval_fraction"
            raise ContractError(f"train.best_metric {config.best_metric} is no held-out metric of this run: {known}")
        return metrics

    def _step(self, step: int, total: int) -> None:
        """Train, look, note and save as it is due."""
        config = self.job.config
        metrics, value = self.trainer.step(step, total), None
        if step == total or (config.eval_steps and step % config.eval_steps == 0):
            metrics |= self.trainer.evaluate()
            shared = [metrics.get(config.best_metric)]
            dist.broadcast_object_list(shared, 0)  # ranks whose figures differed in a last digit would part
            value = shared[0]
            if value is not None:
                self.best = self.best.after(step, value, config)
        self._log({"step": step} | metrics)
        ends = step == total or self.best.says_stop(config) or self._pauses(step)
        to_export = config.export == "best" and self.best.step == step
        if ends or self._is_due(step) or to_export:
            self.save(step, value)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Until a worker of an earlier run that was given up, and still writes, has ended."""
        with FileLock(self.job.out / ".rank-0.lock") if self.trainer.rank == 0 else nullcontext():
            dist.barrier()
            yield

    def _resume(self) -> int | None:
        """Take up the latest checkpoint, if there is one; its step."""
        step, trainer = self.checkpoints.latest(), self.trainer
        if step is not None:
            state = self.checkpoints.load(step, trainer.model, trainer.optimizer)
            trainer.restore(state)
            self.best = Best(**state["best"])
        if trainer.rank == 0:
            if told := self.metrics.read():
                lost = told[-1]["step"] - (step or 0)
                more = f"from {'the start' if step is None else 'a checkpoint'}; steps done again: {lost}"
                self.happened.note({"step": step or 0, "what": "begun again", "more": more})
            self.metrics.rewind(-1 if step is None else step)
        self._saved_at = time.monotonic()
        return step

    def _is_due(self, step: int) -> bool:
        """Whether all ranks save now."""
        resources = self.job.resources
        if resources.checkpoint_steps and step % resources.checkpoint_steps == 0:
            return True
        seconds = time.monotonic() - self._saved_at
        late = torch.tensor(seconds > 60 * resources.checkpoint_minutes, device=self.trainer.device)
        dist.broadcast(late, 0)
        if late.item():
            return True
        told, self._told = self._told, self.is_preempted()
        return self._told and not told  # once

    def save(self, step: int, value: float | None) -> None:
        """Begin a checkpoint after `step`; it is written beside the training. `value` is that of train.best_metric."""
        trainer, state = self.trainer, self.trainer.state() | {"best": asdict(self.best)}
        found = None if value is None or not math.isfinite(value) else score(value, self.job.config)
        self.checkpoints.save(step, trainer.model, trainer.optimizer, state, found)
        self._saved_at = time.monotonic()

    def _log(self, metrics: Metrics) -> None:
        if self.trainer.rank == 0:
            self.metrics.append(metrics)
