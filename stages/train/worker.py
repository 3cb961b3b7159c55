"""What each Ray Train worker runs: the training loop, the same on every rank."""

import json
import resource
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.logps.model import PairLogprobs, load
from stages.train.batches import Share, batch_at, num_steps, shares
from stages.train.config import TrainConfig, TrainResources
from stages.train.export import export_policy, save_checkpoint
from stages.train.fsdp import shard_model
from stages.train.layers import prepare_layers
from stages.train.lora import add_adapters
from stages.train.loss import dpo_loss
from stages.train.pair_table import Batch, PairTable
from stages.train.ref_drift import RefDrift
from stages.train.schedule import lr_at

Metrics = dict[str, float]
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
        sums, drift = Counter[str](), RefDrift()
        for share in self._shares(self.pairs, rows):
            batch = self.pairs.batch(share.rows, self.model, self.device)
            weights = torch.from_numpy(share.weights).to(self.device)
            loss, of_batch, token_logps = self._forward(batch, weights)
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
        self.optimizer.step()
        self.optimizer.zero_grad()

        means, tokens = self._reduce(sums)
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
        sums = Counter[str]()
        for share in self._shares(self.held_out, np.arange(len(self.held_out)), _WITHOUT_GRADIENTS):
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
            with (self.job.out / "metrics.jsonl").open("a") as lines:
                lines.write(json.dumps(metrics) + "\n")


def clear(out: Path) -> None:
    """Training starts at step 0: what an earlier, killed run left is not this run's."""
    for name in ("checkpoint", "policy", "adapter"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / "metrics.jsonl").unlink(missing_ok=True)
