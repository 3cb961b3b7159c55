"""Training steps, sharded by FSDP2 with one rank: against plain torch, and against each other."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.train.config import Lora, TrainConfig, TrainResources
from stages.train.job import Job
from stages.train.objective.ref_drift import TOLERANCES
from stages.train.policy.checkpoints import Checkpoints
from stages.train.policy.export import export_policy
from stages.train.trainer import Trainer
from tests.gpu.forward import own, own_logps, relative
from tests.gpu.inputs import Pair, Sizes, artifacts, configs, random_pairs, save_model
from tests.gpu.table import Row

STEPS = 3
LR = 2e-4
BETA = 0.1  # train.loss.beta, as it is left out
TRADED: tuple[dict[str, Any], ...] = (
    {"activation_checkpointing": "selective"},
    {"activation_checkpointing": "layer"},
    {"cpu_offload": True},
    {"compile": True},
    {"compile": True, "activation_checkpointing": "layer"},
)
Weights = dict[str, torch.Tensor]


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """One rank, with the backends that a run with offloading has."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Run:
    """Some steps of training, and what they gave."""

    def __init__(self, work: Path, given: tuple[PreferencePairs, ReferenceLogprobs], model: Path, **fields: Any):
        device, resources = fields.pop("device"), fields.pop("resources", {})
        config = TrainConfig(
            policy=str(model), global_batch=len(given[0].read("part-00000.parquet")), lr=LR, warmup_fraction=0,
            schedule="constant", max_grad_norm=None, **fields,
        )  # fmt: skip
        longest = given[0].manifest.facts["longest"]
        tokens = 2**20 if device.type == "cpu" else 4096
        resources = TrainResources(
            gpus_per_worker=int(device.type == "cuda"), max_tokens_per_microbatch=tokens, cpus_per_worker=2, **resources
        )
        work.mkdir(parents=True, exist_ok=True)
        self.job = Job(config, resources, *given, work, longest)
        self.trainer = Trainer(self.job)
        self.seconds: list[float] = []

    def train(self, steps: int = STEPS) -> list[dict[str, Any]]:
        metrics = []
        for step in range(1, steps + 1):
            began = time.perf_counter()
            metrics.append(self.trainer.step(step, steps))
            self.seconds.append(time.perf_counter() - began)
        return metrics

    def weights(self) -> Weights:
        state = self.trainer.model.causal_lm.state_dict()
        full = {name: getattr(weight, "full_tensor", lambda w=weight: w)() for name, weight in state.items()}
        return {name: weight.detach().float().cpu().clone() for name, weight in full.items()}


def steps(device: torch.device, sizes: Sizes, work: Path) -> Iterator[Row]:
    """All rows of training; for each dtype the log-probs of the reference are in that dtype too."""
    model, pairs = save_model(configs(sizes)["llama"], work / "llama"), random_pairs(sizes)
    with process_group(device):
        for dtype in ("float32", "bfloat16"):
            given = artifacts(work / dtype, pairs, model, dtype, device)
            yield from _plain(device, work / dtype, given, model, dtype, pairs)
        # What is traded for memory or time changes nothing. In bfloat16, for which FSDP2 shards even one rank's model.
        yield from _traded(device, work / "traded", given, model, "bfloat16")


def _plain(device: torch.device, work: Path, given: Any, model: Path, dtype: str, pairs: list[Pair]) -> Iterator[Row]:
    run = Run(work / "plain", given, model, device=device, dtype=dtype, max_steps=STEPS)
    before = run.weights()
    first, *_ = metrics = run.train()
    loss, norm, expected = by_torch_alone(model, pairs, device)
    tolerance, rounding = TOLERANCES[dtype], 1e-4 if dtype == "float32" else 0.05
    yield Row(
        f"training in {dtype}: drift at step 1, root mean square", first["check/ref_drift_rms"], tolerance, "nats"
    )
    yield Row(f"training in {dtype}: drift at step 1, largest", first["check/ref_drift"], None, "nats")
    yield Row(f"training in {dtype}: loss of step 1 from torch's alone", abs(first["loss"] - loss), rounding / 10)
    yield Row(f"training in {dtype}: gradient norm, relative", abs(first["grad_norm"] / norm - 1), 10 * rounding)
    yield Row(f"training in {dtype}: loss of the last step over the first", metrics[-1]["loss"] / first["loss"], 0.999)
    after = run.weights()
    moved = {name: after[name] - before[name] for name in before}
    wanted = {name: expected[name] - before[name] for name in before}
    # AdamW's first steps move each weight by lr, up or down: where a gradient is nearly 0, rounding says which.
    yield Row(
        f"training in {dtype}: steps of weights, relative", relative(moved, wanted), 0.02 if dtype == "float32" else 0.6
    )
    yield from _kept(run, work)
    run.trainer.close()


def by_torch_alone(model: Path, pairs: list[Pair], device: torch.device) -> tuple[float, float, Weights]:
    """STEPS steps in float32 on all pairs, without anything of ours: loss and gradient norm of the first, weights."""
    policy = own(model, "float32", device)
    with torch.no_grad():
        reference = own_logps(policy, pairs)
    lengths = [len(side) for _, *sides in pairs for side in sides]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, betas=(0.9, 0.999), weight_decay=0.0)
    told = []
    for _ in range(STEPS):
        ratios = torch.stack([part.sum() for part in (own_logps(policy, pairs) - reference).split(lengths)])
        loss = -logsigmoid(BETA * (ratios[0::2] - ratios[1::2])).mean()
        optimizer.zero_grad()
        loss.backward()
        told.append((loss.item(), torch.nn.utils.clip_grad_norm_(policy.parameters(), float("inf")).item()))
        optimizer.step()
    return *told[0], {name: weight.detach().float().cpu() for name, weight in policy.state_dict().items()}


def _kept(run: Run, work: Path) -> Iterator[Row]:
    """A checkpoint, and the export, of a run that has ended."""
    trainer, weights, dtype = run.trainer, run.weights(), run.job.config.dtype
    checkpoints = Checkpoints(work / "checkpoints", run.job.identity, 1, trains_all=True, device=trainer.device)
    checkpoints.save(STEPS, trainer.model, trainer.optimizer, trainer.state(), None)
    trainer.step(STEPS + 1, STEPS + 1)  # while it is written
    checkpoints.wait()
    goes_on = run.weights()
    trainer.restore(checkpoints.load(STEPS, trainer.model, trainer.optimizer))
    yield Row(f"training in {dtype}: weights of a checkpoint, relative", relative(run.weights(), weights), 0.0)
    trainer.step(STEPS + 1, STEPS + 1)
    again = relative(run.weights(), goes_on)
    yield Row(f"training in {dtype}: the step after it, once more, relative", again, 1e-6)
    export_policy(work / "policy", trainer.model, run.job.config)
    loaded = AutoModelForCausalLM.from_pretrained(work / "policy", dtype=torch.float32).state_dict()
    AutoTokenizer.from_pretrained(work / "policy")
    yield Row(f"training in {dtype}: weights as exported, relative", relative(loaded, run.weights()), 0.0)


def _traded(device: torch.device, work: Path, given: Any, model: Path, dtype: str) -> Iterator[Row]:
    rounding, cuda = 0.03, device.type == "cuda"
    fields = {"device": device, "dtype": dtype, "max_steps": STEPS}
    plain = Run(work / "plain", given, model, **fields)
    assert isinstance(plain.trainer.model, FSDPModule)
    expected, peaks = plain.train(), {}
    yield from _told("nothing", plain, peaks)
    for number, resources in enumerate(TRADED if cuda else TRADED[:-1]):
        name = ", ".join(f"{key}: {value}" for key, value in resources.items())
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        del plain
        plain = Run(work / str(number), given, model, resources=resources, **fields)
        metrics = plain.train()
        off = max(abs(mine["loss"] - theirs["loss"]) for mine, theirs in zip(metrics, expected, strict=True))
        yield Row(f"{name}: loss of {STEPS} steps", off, rounding)
        off = abs(metrics[0]["grad_norm"] / expected[0]["grad_norm"] - 1)
        yield Row(f"{name}: gradient norm of step 1, relative", off, rounding)
        if resources.get("compile"):
            yield from _breaks(name, len(plain.trainer.model.layers))
        yield from _told(name, plain, peaks)
    if cuda:
        for mode in ("selective", "layer"):
            used = peaks[f"activation_checkpointing: {mode}"] / peaks["nothing"]
            yield Row(f"activation_checkpointing: {mode}: peak memory over that of none", used, 1.0)
    lora = Run(work / "lora", given, model, lora=Lora(rank=4), **fields).train(2)
    yield Row("lora: loss of step 1 from that without", abs(lora[0]["loss"] - expected[0]["loss"]), rounding / 10)
    yield Row("lora: loss of step 2 over step 1", lora[1]["loss"] / lora[0]["loss"], 1.0)


def _told(name: str, run: Run, peaks: dict[str, float]) -> Iterator[Row]:
    if run.trainer.device.type == "cuda":
        peaks[name] = torch.cuda.max_memory_allocated() / 1e9
    else:
        peaks[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    yield Row(f"{name}: peak memory", peaks[name], None, "GB")
    yield Row(f"{name}: a step, the last", run.seconds[-1], None, "s")


def _breaks(name: str, layers: int) -> Iterator[Row]:
    """Where torch.compile falls back to Python, a layer: once for our attention, which is not compiled."""
    found = torch._dynamo.utils.counters["graph_break"]
    for reason, count in found.items():
        print(f"  graph break, {count} times: {' '.join(reason.split())[:150]}")
    yield Row(f"{name}: graph breaks a layer", sum(found.values()) / layers, 2.0)
