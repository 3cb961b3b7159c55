"""One rank's model, optimizer and pairs: a step of training, and an evaluation."""

import json
import math
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from stages.errors import ContractError
from stages.train.following.metrics_log import Metrics
from stages.train.held_out import HeldOut
from stages.train.job import Job
from stages.train.objective.losses import Logps, Memory
from stages.train.objective.ref_drift import TOLERANCES, RefDrift
from stages.train.objective.report import MOST_SOURCES, report, report_by_source
from stages.train.objective.step_loss import StepLoss, Work
from stages.train.pairs.batch import Batch
from stages.train.pairs.node_cache import NodeCache
from stages.train.pairs.order import Order
from stages.train.pairs.pair_set import Counts, PairSet, count_pairs
from stages.train.pairs.shares import shares
from stages.train.policy.adam8bit import AdamW8bit
from stages.train.policy.build import build
from stages.train.policy.mesh import Mesh
from stages.train.schedule import lr_at

_EVALUATED_AT_ONCE = 1024  # pairs
_WITHOUT_GRADIENTS = 4  # times as many tokens fit into a forward pass that keeps no activations


class Trainer:
    """The same on every rank of the process group, and called by all of them in the same order.

    `beat` is told when a micro-batch begins: of which step, or of None, the one told last.
    """

    def __init__(self, job: Job, beat: Callable[[int | None], None] = lambda _: None):
        self.job, self.config, self._beat = job, job.config, beat
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        cuda = job.resources.gpus_per_worker
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(job.resources.cpus_per_worker)
        self.mesh = Mesh(self.device.type, self.world, job.resources)
        config, cache, counts = self.config, NodeCache(job.resources.cache), self._counts()
        sets = {
            split: PairSet(job.pairs, job.logprobs, split, cache, counts, config.loss.positive_margin)
            for split in counts
        }
        self.pairs = sets.pop("train")
        self._has_sources = 1 < job.pairs.num_sources <= MOST_SOURCES
        self.held_out = HeldOut({split: pairs for split, pairs in sets.items() if len(pairs)})
        self.order = Order(counts["train"], config.seed, config.global_batch, config.shuffle_window)
        self.model = build(config, job.resources, job.longest, self.mesh, self.device)
        if cuda:
            torch.cuda.reset_peak_memory_stats()  # of training, not of reading weights
        self.optimizer = self._optimizer()
        self.loss_state: Memory = {}  # what the loss keeps of earlier steps
        self.skipped = 0  # steps

    def _counts(self) -> Counts:
        """Read by rank 0 for all."""
        given = self.job.pairs, self.job.logprobs, self.config.loss.positive_margin
        counts = [count_pairs(*given) if self.rank == 0 else None]
        dist.broadcast_object_list(counts, 0)
        return cast(Counts, counts[0])

    def _optimizer(self) -> torch.optim.Optimizer:
        config, weights = self.config, [weight for weight in self.model.parameters() if weight.requires_grad]
        if config.optimizer == "adamw_8bit":
            return AdamW8bit(weights, config.lr, config.adam_betas, config.adam_eps, config.weight_decay)
        return torch.optim.AdamW(
            weights, config.lr, config.adam_betas, config.adam_eps, config.weight_decay, fused=True
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights and optimizer; plain data, the same on every rank."""
        rng = torch.get_rng_state().numpy().tobytes().hex()
        return {"skipped": self.skipped, "loss": self.loss_state, "rng": rng}

    def restore(self, state: dict[str, Any]) -> None:
        self.skipped, self.loss_state = state["skipped"], state["loss"]
        torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["rng"]), dtype=torch.uint8))

    def close(self) -> None:
        """Let go of the pairs' files."""
        self.pairs.close()
        self.held_out.close()

    def step(self, step: int, total: int) -> Metrics:
        """One optimizer step on the pairs of `order.batch_at(step)`; its metrics are means over them."""
        config, began = self.config, time.perf_counter()
        rows = self.order.batch_at(step)
        self.pairs.keep(self.order.parts_at(step))
        step_loss, drift = self._step_loss(self.pairs, rows), RefDrift()
        compares = step == 1 and config.loss.reference
        self._beat(step)
        for number, work in enumerate(step_loss.work, start=1):
            if isinstance(self.model, FSDPModule):  # copies of the weights: their gradients are summed once
                self.model.set_requires_all_reduce(number == len(step_loss.work))
            loss, batch, token_logps = step_loss.learn(work)
            # FSDP averages gradients over ranks; the loss is a mean over the pairs of the step.
            (loss * self.world / config.global_batch).backward()
            if compares:
                drift += RefDrift.of(batch, token_logps)
        checks = self._check_drift(drift) if compares else {}

        lr = lr_at(step, total, config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm or float("inf"))
        grad_norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
        seen, losses = step_loss.learned()
        if losses.isfinite().all() and math.isfinite(grad_norm):
            self.optimizer.step()
            self.loss_state = step_loss.memory
            means = report(seen, losses, config.loss)
            if self._has_sources:
                by_source = report_by_source(seen, losses, config.loss, self.pairs.sources(rows))
                means |= {f"train/{name}": value for name, value in by_source.items()}
        else:
            self._skip(step, rows[~losses.isfinite().cpu().numpy()])
            means, grad_norm = {}, 0.0
        self.optimizer.zero_grad()
        tokens = step_loss.all_tokens()
        seconds = time.perf_counter() - began
        return means | checks | {
            "batch": self.pairs.digest(rows),  # the same on any number of workers, and after any stop
            "grad_norm": grad_norm,
            "lr": lr,
            "skipped": self.skipped,
            "epoch": step * config.global_batch / len(self.pairs),
            "pairs_per_second": config.global_batch / seconds,
            "tokens_per_second": tokens / seconds,
            "step_seconds": seconds,
            "data_seconds": step_loss.data_seconds,  # of it, on rank 0, waiting for pairs
            "peak_memory_gb": self._peak_memory(),
        }  # fmt: skip

    def _skip(self, step: int, bad: np.ndarray) -> None:
        """Leave the weights as they are, and note the pairs. Raises ContractError past the limit."""
        self.skipped += 1
        pair_ids = self.pairs.ids(bad)
        if self.rank == 0:
            with (self.job.out / "skipped.jsonl").open("a") as lines:
                lines.write(json.dumps({"step": step, "pairs": pair_ids}) + "\n")
        if self.skipped > self.config.max_skipped_steps:
            told = f"Pairs: {', '.join(pair_ids[:4])}" if pair_ids else "Every loss is finite, the gradient is not"
            raise ContractError(
                f"at step {step} the loss or the gradient is not finite, as in {self.skipped - 1} steps before, and "
                f"train.max_skipped_steps is {self.config.max_skipped_steps}. {told}; all stand in "
                f"{self.job.out / 'skipped.jsonl'}. Look at them, lower train.lr, or train in float32"
            )

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """Means over the held-out pairs, named eval/.. (held_out.py); nothing where no pair is held out."""
        return self.held_out.metrics(self._look, self.config.loss)

    def _look(self, pairs: PairSet) -> tuple[Logps, torch.Tensor]:
        """All pairs of a set and their losses, in its order."""
        rows, loss = np.arange(len(pairs)), self.config.loss
        size = self.config.global_batch if loss.of_the_step else _EVALUATED_AT_ONCE
        looks = [
            self._step_loss(pairs, rows[start : start + size], _WITHOUT_GRADIENTS).look()
            for start in range(0, len(rows), size)
        ]
        seen = [columns for columns, _ in looks]
        whole = type(seen[0])(*map(torch.cat, zip(*seen, strict=True)))
        return whole, torch.cat([losses for _, losses in looks])

    def _step_loss(self, pairs: PairSet, rows: np.ndarray, larger: int = 1) -> StepLoss:
        """The loss over `rows` of the pairs, in micro-batches that may be `larger` than those of training."""
        resources, mesh = self.job.resources, self.mesh
        max_tokens = larger * resources.max_tokens_per_microbatch * resources.context_parallel
        work = [
            Work(
                partial(self._batch, pairs, rows[share.rows]),
                torch.from_numpy(share.rows).to(self.device),
                torch.from_numpy(share.weights).to(self.device),
            )
            for share in shares(np.arange(len(rows)), pairs.lengths(rows), mesh.rank, mesh.world, max_tokens)
        ]
        return StepLoss(self.config.loss, self.model, work, len(rows), self.loss_state, mesh.group)

    def _batch(self, pairs: PairSet, rows: np.ndarray) -> Batch:
        self._beat(None)
        return Batch.of(pairs.read(rows), self.model, self.device)

    def _check_drift(self, drift: RefDrift) -> Metrics:
        gathered: list[RefDrift] = [drift] * self.world
        dist.all_gather_object(gathered, drift)
        drift = sum(gathered, RefDrift())
        if self.config.starts_at_reference:
            drift.check(self.config.ref_tolerance or TOLERANCES[self.config.dtype], self.model.routes)
        return drift.figures

    def _peak_memory(self) -> float:
        """Largest over the ranks, in 1e9 bytes: memory allocated on the GPU since the model was loaded; or resident
        memory of the process, loading included, which the system cannot forget."""
        cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        value = torch.tensor(float(peak), dtype=torch.float64, device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return value.item() / 1e9
