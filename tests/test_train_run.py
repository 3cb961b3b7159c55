"""How ranks of the train stage come together, and part."""

import errno
import pickle
from pathlib import Path

import pytest
import torch.distributed as dist
from conftest import Project

from stages.errors import ContractError, MissingArtifact, RecipeError
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


@pytest.mark.parametrize(
    "error",
    [
        RecipeError("a loss of \ud800 is none"),
        ContractError("parts differ"),
        MissingArtifact("score it first"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_refusal_comes_back_as_it_was(error: Exception, tmp_path: Path) -> None:
    Refusal(tmp_path).keep(error)
    with pytest.raises(type(error)) as raised:
        Refusal(tmp_path).reraise()
    assert type(raised.value) is type(error)
    assert raised.value.args == error.args


def test_a_refusal_runs_nothing(tmp_path: Path) -> None:
    """Whoever can write to the folder can stop a run, and no more."""
    (tmp_path / ".refusal").write_bytes(pickle.dumps(Bomb(tmp_path / "went off")))
    with pytest.raises(UnicodeDecodeError):
        Refusal(tmp_path).reraise()
    assert not (tmp_path / "went off").exists()


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)
