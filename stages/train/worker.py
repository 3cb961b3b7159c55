"""What each Ray Train worker runs: the training loop, the same on every rank."""

import json
import math
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from filelock import FileLock
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.errors import ContractError, is_for_users
from stages.logps.model import PairLogprobs, load
from stages.train.batches import Share, batch_at, num_steps, shares
from stages.train.checkpoints import Checkpoints
from stages.train.config import TrainConfig, TrainResources
from stages.train.export import export_policy
from stages.train.fsdp import shard_model
from stages.train.layers import prepare_layers
from stages.train.lora import add_adapters
from stages.train.loss import dpo_loss
from stages.train.metrics_log import Metrics, MetricsLog
from stages.train.pair_table import Batch, PairTable
from stages.train.ref_drift import RefDrift
from stages.train.refusal import Refusal
from stages.train.schedule import lr_at
from stages.train.watch import Watch

_WITHOUT_GRADIENTS = 4  # times as many tokens fit into a forward pass that keeps no activations


@dataclass(frozen=True)
class Job:
    config: TrainConfig
    resources: TrainResources
    pairs: PreferencePairs
    logprobs: ReferenceLogprobs
    out: Path
    longest: int  # tokens of the longest sequence


def train_worker(loop_config: dict[str, Job]) -> None:
    """Train the run of `loop_config["job"]`, from its latest checkpoint on. Ray Train calls it on every worker."""
    from ray.train import get_preemption_info

    job = loop_config["job"]
    refusal = Refusal(job.out)
    if refusal.stands:
        return  # Ray starts again what no restart mends; the driver raises it
    try:
        Worker(job, is_preempted=lambda: get_preemption_info() is not None).run()
    except Exception as error:
        if not is_for_users(error):
            raise
        refusal.keep(error)
        dist.destroy_process_group()  # ranks that wait for this one fail now


class Worker:
    """One rank. `is_preempted`: whether the machines have been told to go; asked by all ranks at once."""

    def __init__(self, job: Job, is_preempted: Callable[[], bool] = lambda: False):
        self.job, self.config, self.is_preempted = job, job.config, is_preempted
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        cuda = job.resources.gpus_per_worker
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(job.resources.cpus_per_worker)
        self.pairs = PairTable(job.pairs, job.logprobs, "train")
        self.held_out = PairTable(job.pairs, job.logprobs, "eval")
        self.model = self._sharded_model()
        config = self.config
        self.optimizer = torch.optim.AdamW(
            [weight for weight in self.model.parameters() if weight.requires_grad], lr=config.lr,
            betas=config.adam_betas, eps=config.adam_eps, weight_decay=config.weight_decay, fused=True,
        )  # fmt: skip
        self.metrics = MetricsLog(job.out / "metrics.jsonl")
        self.watch = Watch(job.out / ".stalls", self.rank, self.world, job.resources.stall_seconds)
        self.checkpoints = Checkpoints(
            job.out / "checkpoints", identity_of(job), job.resources.keep_checkpoints, trains_all=config.lora is None
        )
        self.skipped = 0  # steps
        self._told = False  # to go

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
        """All steps that are left, and the export."""
        with self._alone():
            total, done = num_steps(len(self.pairs), self.config), self._resume()
            with self.watch.watching():
                if done is None:
                    self._log({"step": 0} | self.evaluate())
                for step in range((done or 0) + 1, total + 1):
                    metrics = self.step(step, total)
                    if step == total or (self.config.eval_steps and step % self.config.eval_steps == 0):
                        metrics |= self.evaluate()
                    self._log({"step": step} | metrics)
                    if step == total or self._is_due(step):
                        self._save(step, metrics.get("eval/loss"))
            self.checkpoints.wait()
            export_policy(self.job.out / "policy", self.model, self.config)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Until a worker of an earlier run that was given up, and still writes, has ended."""
        with FileLock(self.job.out / ".rank-0.lock") if self.rank == 0 else nullcontext():
            dist.barrier()
            yield

    def _resume(self) -> int | None:
        """Take up the latest checkpoint, if there is one; its step."""
        step = self.checkpoints.latest()
        if step is not None:
            state = self.checkpoints.load(step, self.model, self.optimizer)
            self.skipped = state["skipped"]
            torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["rng"]), dtype=torch.uint8))
        if self.rank == 0:
            self.metrics.rewind(-1 if step is None else step)
        self._saved_at = time.monotonic()
        return step

    def _is_due(self, step: int) -> bool:
        """Whether all ranks save now."""
        resources = self.job.resources
        if resources.checkpoint_steps and step % resources.checkpoint_steps == 0:
            return True
        late = torch.tensor(time.monotonic() - self._saved_at > 60 * resources.checkpoint_minutes, device=self.device)
        dist.broadcast(late, 0)
        if late.item():
            return True
        told, self._told = self._told, self.is_preempted()
        return self._told and not told  # once

    def _save(self, step: int, held_out_loss: float | None) -> None:
        state = {"skipped": self.skipped, "rng": torch.get_rng_state().numpy().tobytes().hex()}
        self.checkpoints.save(step, self.model, self.optimizer, state, held_out_loss)
        self._saved_at = time.monotonic()

    def step(self, step: int, total: int) -> Metrics:
        """One optimizer step on the pairs of `batch_at(step)`; its metrics are means over them."""
        config, began = self.config, time.perf_counter()
        rows = batch_at(step, config.seed, len(self.pairs), config.global_batch)
        sums, drift, bad, data_seconds = Counter[str](), RefDrift(), list[str](), 0.0
        for share in self._shares(self.pairs, rows):
            self.watch.beat(step)
            asked = time.perf_counter()
            batch = self.pairs.batch(share.rows, self.model, self.device)
            weights = torch.from_numpy(share.weights).to(self.device)
            data_seconds += time.perf_counter() - asked
            loss, of_batch, token_logps = self._forward(batch, weights)
            if not loss.isfinite():
                bad += batch.pair_ids
            # FSDP averages gradients over ranks; the loss is a mean over the pairs of the step.
            (loss * self.world / config.global_batch).backward()
            sums.update(of_batch)
            if step == 1:
                drift += RefDrift.of(batch, token_logps)
        checks = self._check_drift(drift) if step == 1 else {}

        lr = lr_at(step, total, config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm or float("inf"))
        grad_norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
        means, tokens = self._reduce(sums)
        if math.isfinite(means["loss"]) and math.isfinite(grad_norm):
            self.optimizer.step()
        else:
            means, grad_norm = {}, 0.0
            self._skip(step, bad)
        self.optimizer.zero_grad()
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
            "data_seconds": data_seconds,  # of it, on rank 0, waiting for pairs
            "peak_memory_gb": self._peak_memory(),
        }  # fmt: skip

    def _skip(self, step: int, bad: list[str]) -> None:
        """Leave the weights as they are. Raises ContractError past the limit."""
        gathered: list[list[str]] = [bad] * self.world
        dist.all_gather_object(gathered, bad)
        self.skipped += 1
        suspects = [pair_id for of_rank in gathered for pair_id in of_rank] or [
            "none: every loss is finite, the gradient is not"
        ]
        if self.rank == 0:
            with (self.job.out / "skipped.jsonl").open("a") as lines:
                lines.write(json.dumps({"step": step, "pairs": suspects}) + "\n")
        if self.skipped > self.config.max_skipped_steps:
            raise ContractError(
                f"at step {step} the loss or the gradient is not finite, as in {self.skipped - 1} steps before, and "
                f"train.max_skipped_steps is {self.config.max_skipped_steps}. Pairs: {', '.join(suspects[:4])}; all "
                f"stand in {self.job.out / 'skipped.jsonl'}. Look at them, lower train.lr, or train in float32"
            )

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """Means over the held-out pairs, named eval/..; nothing where no pair is held out."""
        if not len(self.held_out):
            return {}
        sums = Counter[str]()
        for share in self._shares(self.held_out, np.arange(len(self.held_out)), _WITHOUT_GRADIENTS):
            self.watch.beat()
            batch = self.held_out.batch(share.rows, self.model, self.device)
            sums.update(self._forward(batch, torch.from_numpy(share.weights).to(self.device))[1])
        means, _ = self._reduce(sums)
        return {f"eval/{name}": value for name, value in means.items()}

    def _shares(self, table: PairTable, rows: np.ndarray, larger: int = 1) -> list[Share]:
        max_tokens = larger * self.job.resources.max_tokens_per_microbatch
        return shares(rows, table.lengths[rows], self.rank, self.world, max_tokens)

    def _forward(self, batch: Batch, weights: torch.Tensor) -> tuple[torch.Tensor, Metrics, torch.Tensor]:
        """Loss summed over the batch, weighted sums of metrics, and per-token log-probs [N]."""
        token_logps = self.model(batch.layout)
        chosen_logps, rejected_logps = batch.layout.sums(token_logps)
        losses, chosen_rewards, rejected_rewards = dpo_loss(
            chosen_logps, rejected_logps, batch.ref_chosen_logps, batch.ref_rejected_logps,
            self.config.beta, self.config.label_smoothing,
        )  # fmt: skip
        per_pair = {
            "loss": losses,
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/margins": chosen_rewards - rejected_rewards,
            "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
            "logps/chosen": chosen_logps,
            "logps/rejected": rejected_logps,
        }
        sums = {name: (weights * values.detach()).sum().item() for name, values in per_pair.items()}
        sums |= {"pairs": weights.sum().item(), "tokens": float(batch.layout.num_tokens)}
        return (weights * losses).sum(), sums, token_logps

    def _reduce(self, sums: Counter[str]) -> tuple[Metrics, float]:
        """Sums of this rank -> means over all pairs of all ranks, and the number of tokens computed."""
        values = torch.tensor(list(sums.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        total = dict(zip(sums, values.tolist(), strict=True))
        pairs, tokens = total.pop("pairs"), total.pop("tokens")
        return {name: value / pairs for name, value in total.items()}, tokens

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
            self.metrics.append(metrics)


def identity_of(job: Job) -> dict[str, Any]:
    """What a checkpoint must have been made from, to be taken up by `job`."""
    inputs = {"pairs": job.pairs.manifest.fingerprint, "logprobs": job.logprobs.manifest.fingerprint}
    return {"config": job.config.model_dump(mode="json"), "inputs": inputs}
