"""What each Ray Train worker runs: the training loop, the same on every rank."""

import json
import resource
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.logps.model import PairLogprobs, load
from stages.train.batches import batch_at, num_steps, shares
from stages.train.config import TrainConfig, TrainResources
from stages.train.export import export_policy, save_checkpoint
from stages.train.fsdp import shard_model
from stages.train.layers import prepare_layers
from stages.train.lora import add_adapters
from stages.train.losses import Memory
from stages.train.pair_table import PairTable
from stages.train.ref_drift import RefDrift
from stages.train.report import Metrics, report
from stages.train.schedule import lr_at
from stages.train.step_loss import StepLoss, Work

_WITHOUT_GRADIENTS = 4  # times as many tokens fit into a forward pass that keeps no activations


@dataclass(frozen=True)
class Job:
    config: TrainConfig
    resources: TrainResources
    pairs: PreferencePairs
    logprobs: ReferenceLogprobs | None  # None: the loss needs no reference
    out: Path
    longest: int  # tokens of the longest sequence


def train_worker(loop_config: dict[str, Job]) -> None:
    """Train the run of `loop_config["job"]`. Rank 0 writes `metrics.jsonl`, a line a step; all write the checkpoint."""
    Worker(loop_config["job"]).run()


class Worker:
    def __init__(self, job: Job):
        self.job, self.config = job, job.config
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        cuda = job.resources.gpus_per_worker
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(job.resources.cpus_per_worker)
        self.pairs = PairTable(job.pairs, job.logprobs, "train")
        self.held_out = PairTable(job.pairs, job.logprobs, "eval")
        self.model = self._sharded_model()
        self.loss_state: Memory = {}  # what the loss keeps of earlier steps
        config = self.config
        self.optimizer = torch.optim.AdamW(
            [weight for weight in self.model.parameters() if weight.requires_grad], lr=config.lr,
            betas=config.adam_betas, eps=config.adam_eps, weight_decay=config.weight_decay, fused=True,
        )  # fmt: skip

    def _sharded_model(self) -> PairLogprobs:
        config, resources = self.config, self.job.resources
        model = load(config.policy, "float32", self.job.longest)
        if config.lora is not None:
            add_adapters(model.causal_lm, config.lora, config.seed)
        prepare_layers(model, resources)
        mesh = init_device_mesh(self.device.type, (self.world,))
        shard_model(model.to(self.device), mesh, config.dtype, resources.cpu_offload)
        return model

    def run(self) -> None:
        config = self.config
        total = num_steps(len(self.pairs), config)
        self._log({"step": 0} | self.evaluate())
        for step in range(1, total + 1):
            self._log({"step": step} | self.step(step, total))
        self._log({"step": total} | self.evaluate())
        save_checkpoint(self.job.out / "checkpoint", self.model, self.optimizer, total, config)
        export_policy(self.job.out / "policy", self.model, config)

    def step(self, step: int, total: int) -> Metrics:
        """One optimizer step on the pairs of `batch_at(step)`; its metrics are means over them."""
        config, began = self.config, time.perf_counter()
        rows = batch_at(step, config.seed, len(self.pairs), config.global_batch)
        step_loss, drift = self._step_loss(self.pairs, rows), RefDrift()
        compares = step == 1 and config.loss.reference
        for work in step_loss.work:
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
        self.optimizer.step()
        self.optimizer.zero_grad()

        self.loss_state = step_loss.memory
        means, tokens = report(*step_loss.learned(), config.loss), step_loss.all_tokens()
        seconds = time.perf_counter() - began
        return means | checks | {
            "grad_norm": (norm.full_tensor() if isinstance(norm, DTensor) else norm).item(),
            "lr": lr,
            "epoch": step * config.global_batch / len(self.pairs),
            "pairs_per_second": config.global_batch / seconds,
            "tokens_per_second": tokens / seconds,
            "peak_memory_gb": self._peak_memory(),
        }  # fmt: skip

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """Means over the held-out pairs, named eval/..; nothing where no pair is held out."""
        if not len(self.held_out):
            return {}
        pairs, loss = np.arange(len(self.held_out)), self.config.loss
        size = self.config.global_batch if loss.of_the_step else len(pairs)
        looks = [
            self._step_loss(self.held_out, pairs[start : start + size], _WITHOUT_GRADIENTS).look()
            for start in range(0, len(pairs), size)
        ]
        seen = [columns for columns, _ in looks]
        whole = type(seen[0])(*map(torch.cat, zip(*seen, strict=True)))
        losses = torch.cat([losses for _, losses in looks])
        means = report(whole, losses, loss)
        return {f"eval/{name}": value for name, value in means.items()}

    def _step_loss(self, table: PairTable, rows: np.ndarray, larger: int = 1) -> StepLoss:
        """The loss over `rows` of the table, in micro-batches that may be `larger` than those of training."""
        max_tokens = larger * self.job.resources.max_tokens_per_microbatch
        work = [
            Work(
                partial(table.batch, rows[share.rows], self.model, self.device),
                torch.from_numpy(share.rows).to(self.device),
                torch.from_numpy(share.weights).to(self.device),
            )
            for share in shares(np.arange(len(rows)), table.lengths[rows], self.rank, self.world, max_tokens)
        ]
        return StepLoss(self.config.loss, self.model, work, len(rows), self.loss_state)

    def _check_drift(self, drift: RefDrift) -> Metrics:
        gathered: list[RefDrift] = [drift] * self.world
        dist.all_gather_object(gathered, drift)
        drift = sum(gathered, RefDrift())
        if self.config.starts_at_reference:
            drift.check(self.config.ref_tolerance)
        return {"check/ref_drift": drift.largest, "check/ref_drift_mean": drift.mean}

    def _peak_memory(self) -> float:
        """Largest over the ranks, in 1e9 bytes: resident memory, or memory allocated on the GPU."""
        cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        value = torch.tensor(float(peak), dtype=torch.float64, device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return value.item() / 1e9

    def _log(self, metrics: Metrics) -> None:
        if self.rank == 0:
            with (self.job.out / "metrics.jsonl").open("a") as lines:
                lines.write(json.dumps(metrics) + "\n")


def clear(out: Path) -> None:
    """Training starts at step 0: what an earlier, killed run left is not this run's."""
    for name in ("checkpoint", "policy", "adapter"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / "metrics.jsonl").unlink(missing_ok=True)
