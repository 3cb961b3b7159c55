"""The train stage: Ray Train starts the workers; the metrics they write are followed here."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_preemption_info
from ray.train.torch import TorchConfig, TorchTrainer

from stages.artifacts import PolicyCheckpoint, PreferencePairs, ReferenceLogprobs
from stages.config import Elastic
from stages.cpu_environment import cpu_environment
from stages.errors import ContractError, MissingArtifact, Paused, is_for_users, out_of_ray
from stages.model_files import check_fits
from stages.progress import Progress, Silent
from stages.train.best import Best
from stages.train.config import TrainConfig, TrainResources
from stages.train.following.follower import Follower
from stages.train.following.happened import Happened
from stages.train.following.metrics_log import Metrics
from stages.train.following.refusal import Refusal
from stages.train.job import Job
from stages.train.pairs.pair_set import count_pairs
from stages.train.pairs.shares import num_steps


def train(
    config: TrainConfig,
    *,
    pairs: PreferencePairs,
    logprobs: ReferenceLogprobs | None = None,
    out: Path,
    resources: TrainResources,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the PolicyCheckpoint of `config` under `out` and return the facts of the work.

    `logprobs` may be left out where the loss needs no reference, and are not read there. Raises RecipeError where the
    policy cannot take the pairs' length; ContractError where `logprobs` are not those of `pairs`, the loss cannot be
    computed of them, a part is damaged, or the policy is not the reference at step 1; Paused where `resources` say so.
    """
    made = pairs.manifest.facts
    check_fits(config.policy, made["longest"], made.get("largest_id", 0))
    num_pairs = made["train"]
    if config.loss.reference:
        if logprobs is None:
            raise MissingArtifact(
                f"train.loss {config.loss.name} needs the reference's log-probs: score the pairs first"
            )
        logprobs.check_scored_from(pairs)
        num_pairs -= logprobs.manifest.facts["unscored"]["train"]
    else:
        logprobs = None
    _check_rows(config, pairs)
    aside = 0
    if config.loss.positive_margin:
        usable = int(count_pairs(pairs, logprobs, positive_margin=True)["train"].sum())
        num_pairs, aside = usable, num_pairs - usable
        if not usable:
            raise ContractError(
                f"train.loss {config.loss.name} takes the logarithm of margins, and none of the {aside} pairs of "
                f"PreferencePairs {pairs.folder.name} has one above 0. Look at shard.columns.margin, or set "
                "train.loss.margin_scale_of: identity"
            )
    if not num_pairs:
        raise ContractError(f"PreferencePairs {pairs.folder.name} has no pair to train on; lower shard.eval_fraction")
    notices = config.advice(made)
    if aside:
        notices.append(f"{aside} pairs have no margin above 0, of which train.loss takes the logarithm: set aside")
    progress = progress or Silent()
    for notice in notices:
        progress.notice(notice)
    out.mkdir(parents=True, exist_ok=True)
    steps = num_steps(num_pairs, config)
    _fit(Job(config, resources, pairs, logprobs, out, made["longest"]), steps, progress)
    if not PolicyCheckpoint(out).policy.exists():
        step = PolicyCheckpoint(out).metrics[-1]["step"]
        raise Paused(f"training has paused after step {step} of {steps}, as cluster.train.pause_at says")
    facts = _facts(PolicyCheckpoint(out).metrics, config, steps, num_pairs)
    told = {"without_margin": aside, "notices": notices, "happened": Happened(out).read()}
    return facts | {key: value for key, value in told.items() if value}


def _check_rows(config: TrainConfig, pairs: PreferencePairs) -> None:
    """Labelled completions for the losses of labelled completions, pairs for the others."""
    given = "labelled" if pairs.labelled else "pairs"
    wanted = "labelled" if config.loss.labelled else "pairs"
    if given != wanted:
        raise ContractError(
            f"train.loss {config.loss.name} needs {_ROWS[wanted]}, and PreferencePairs {pairs.folder.name} holds "
            f"{_ROWS[given]}. Set shard.rows: {wanted}"
        )


_ROWS = {"pairs": "pairs", "labelled": "labelled completions"}
_TOLD_OF_HELD_OUT = ("/loss", "/rewards/accuracies", "/rewards/margins")


def _fit(job: Job, steps: int, progress: Progress) -> None:
    resources, scratch, refusal = job.resources, job.out / ".ray", Refusal(job.out)
    shutil.rmtree(scratch, ignore_errors=True)  # what is taken up are our own checkpoints, not Ray Train's
    refusal.forget()
    fewest, most = resources.fewest_workers, resources.most_workers
    environment = {} if resources.gpus_per_worker else {"env_vars": cpu_environment(most)}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend=backend_of(resources)),
        scaling_config=ScalingConfig(
            num_workers=(fewest, most) if isinstance(resources.workers, Elastic) else most,
            use_gpu=bool(resources.gpus_per_worker),
            resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker},
            label_selector=resources.labels or None,
            elastic_resize_monitor_interval_s=resources.resize_seconds,
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=resources.restarts),
            worker_runtime_env=environment,
        ),
    )
    finished = Event()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(Follower(job, steps, progress).follow, finished)
        try:
            with out_of_ray():
                trainer.fit()
        except Exception:
            refusal.reraise()
            raise
        finally:
            finished.set()
    following.result()
    refusal.reraise()
    shutil.rmtree(scratch)


def backend_of(resources: TrainResources) -> str | None:
    """Of the ranks' process group; None is Ray's choice, NCCL where there are GPUs.

    NCCL knows no tensors in the memory of the host, where offloaded gradients are reduced and weights gathered.
    """
    return "cpu:gloo,cuda:nccl" if resources.cpu_offload and resources.gpus_per_worker else None


def train_worker(loop_config: dict[str, Job]) -> None:
    """Train the run of `loop_config["job"]`, from its latest checkpoint on. Ray Train calls it on every worker."""
    # Not at the top: it takes seconds, and neither the driver nor Ray Train's controller needs it.
    from stages.train.worker import Worker

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
        if dist.get_backend() != "gloo":
            raise  # NCCL's ranks do not learn that this one is gone: Ray ends them, and restarts return at once
        dist.destroy_process_group()  # ranks that wait for this one fail now


def _facts(metrics: list[Metrics], config: TrainConfig, steps: int, pairs: int) -> dict[str, Any]:
    before, first, after = metrics[0], metrics[1], metrics[-1]
    trained = [line for line in metrics[1:] if "loss" in line]  # skipped steps have none
    best, exported = Best(), after
    for line in metrics[1:]:
        if config.best_metric in line:
            best = best.after(line["step"], line[config.best_metric], config)
    if config.export == "best" and best.step is not None:
        exported = next(line for line in metrics if line["step"] == best.step)
    moved = {"loss": [trained[0]["loss"], trained[-1]["loss"]]}
    moved |= {
        name: [before[name], exported[name]] for name in before if name in exported and name.endswith(_TOLD_OF_HELD_OUT)
    }
    told: dict[str, Any] = {}
    if config.looks_for_best and best.step is not None:
        told["best"] = {"step": best.step, config.best_metric: best.value}
    if after["step"] < steps:
        told["stopped early"] = f"at step {after['step']} of {steps}: {best.waited} evaluations without gain"
    drift: dict[str, Any] = {name: value for name, value in first.items() if name.startswith("check/ref_drift")}
    told |= {
        "steps": after["step"],
        "pairs": pairs,
        "skipped": after["skipped"],
        "before and after": moved,  # of training to the policy exported; the loss at its first and last step
        **drift,
        "peak_memory_gb": max(line.get("peak_memory_gb", 0.0) for line in metrics),
    }
    return told
