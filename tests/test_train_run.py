"""How ranks of the train stage come together, and part."""

from pathlib import Path

import pytest
import torch.distributed as dist
from conftest import Project

from stages.errors import ContractError
from stages.train.config import TrainResources
from stages.train.following.refusal import Refusal
from stages.train.job import Job
from stages.train.run import backend_of, train_worker


def test_offloaded_gradients_are_reduced_by_gloo() -> None:
    assert backend_of(TrainResources(gpus_per_worker=1, cpu_offload=True)) == "cpu:gloo,cuda:nccl"
    assert backend_of(TrainResources(gpus_per_worker=1)) is None  # Ray takes NCCL
    assert backend_of(TrainResources(cpu_offload=True)) is None  # and gloo


@pytest.mark.parametrize("backend", ["gloo", "cpu:gloo"])
def test_an_error_for_users_ends_the_other_ranks(backend: str, inputs: tuple, trained: Project, tmp_path: Path) -> None:
    """Gloo's ranks fail when this one leaves. Those of any other backend, NCCL's, wait until Ray hears of an error."""
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    config = trained.plan()["train"].config.model_copy(update={"best_metric": "eval/none", "patience": 1})
    job = Job(config, TrainResources(), *inputs, tmp_path, 128)
    try:
        if backend == "gloo":
            train_worker({"job": job})
            assert not dist.is_initialized()
        else:
            with pytest.raises(ContractError, match=r"best_metric eval/none is no held-out metric"):
                train_worker({"job": job})
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    assert Refusal(tmp_path).stands
    train_worker({"job": job})  # a restart returns at once: it has no process group, and asks for none
    with pytest.raises(ContractError, match="best_metric eval/none"):
        Refusal(tmp_path).reraise()
