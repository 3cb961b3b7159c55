"""Checkpoints to resume from: written beside the training, whole or not there, readable by any number of ranks."""

import errno
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from stages.errors import ContractError
from stages.train.policy.checkpoint_reader import Planner, Reader

_log = logging.getLogger("raydpo")
_META = "meta.json"
_FULL = 1 << 16  # bytes free on a disk that had no room for what was written


class Checkpoints:
    """`step-00000123/` folders of torch.distributed.checkpoint, each with a `meta.json`; used by all ranks together.

    `identity` is plain data that a checkpoint must have been made from to be taken up. The newest `keep` stay, and the
    first one of the lowest score.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        keep: int,
        trains_all: bool,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ):
        self.folder, self.identity, self.keep = folder, identity, keep
        # What is frozen, the base model under adapters, stands in the model that training started from.
        self._options = StateDictOptions(ignore_frozen_params=not trains_all)
        self._trains_all = trains_all
        self._group = dist.new_group(backend="gloo")  # of the writing threads: training goes on in the other one
        cuda = device.type == "cuda"
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=cuda
            )
        )
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=_stand_back, initargs=(device,))
        self._writing: Future[None] | None = None

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], score: float | None
    ) -> None:
        """Copy weights and optimizer, and write them while training goes on; what was being written is waited for.

        `state` is plain data, the same on every rank; `score` says how good it is, where that is known: low is good.
        """
        self.wait()
        staged = cast(dict[str, Any], self._stager.stage(self._state_of(model, optimizer)))
        meta = {"step": step, "torch": torch.__version__, "score": score, "state": state, "identity": self.identity}
        self._writing = self._thread.submit(self._write, staged, meta)

    def wait(self) -> None:
        """Until what is being written is on disk. Raises what went wrong; older checkpoints are whole all the same."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except CheckpointException as error:
            if shutil.disk_usage(self.folder).free < _FULL:  # torch.save says so of some writes only
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder)) from error
            raise

    def latest(self) -> int | None:
        """The step of the newest whole one, as rank 0 sees it. Clears what killed runs left half written."""
        if dist.get_rank() == 0:
            for scratch in self.folder.glob(".step-*"):
                shutil.rmtree(scratch, ignore_errors=True)
        found = [max(self._steps(), default=None)]
        dist.broadcast_object_list(found, 0)
        return found[0]

    def load(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Put weights and optimizer back, resharded to the ranks of now; returns the `state` that was saved.

        Raises ContractError where the checkpoint was made from something else.
        """
        meta = self._meta(step)
        self._check(meta)
        loaded = self._state_of(model, optimizer)
        try:
            dcp.load(loaded, storage_reader=Reader(self._path(step)), planner=Planner())
        except CheckpointException as error:  # of all ranks together
            first, _ = next(iter(error.failures.values()))
            if isinstance(first, OSError):  # another attempt may end otherwise
                raise
            told = first if isinstance(first, ContractError) else self._damaged(step, first)
            raise told from error
        options = StateDictOptions(ignore_frozen_params=not self._trains_all, strict=self._trains_all)
        set_state_dict(
            model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"], options=options
        )
        state: dict[str, Any] = meta["state"]
        return state

    def _state_of(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        model_state, optimizer_state = get_state_dict(model, optimizer, options=self._options)
        if not self._trains_all:  # a frozen head that is tied to the embedding stays in the state
            trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
            model_state = {name: weight for name, weight in model_state.items() if name in trained}
        return {"model": model_state, "optimizer": optimizer_state}

    def _write(self, staged: dict[str, Any], meta: dict[str, Any]) -> None:
        path = self._path(meta["step"])
        unfinished = path.with_name(f".{path.name}")
        writer = dcp.FileSystemWriter(unfinished, sync_files=True)
        dcp.save(staged, storage_writer=writer, process_group=self._group)
        if dist.get_rank() == 0:  # its save ends after those of all ranks
            (unfinished / _META).write_text(json.dumps(meta))
            _remove(path)
            unfinished.rename(path)
            self._prune()

    def _prune(self) -> None:
        steps = sorted(self._steps())
        scores = {step: score for step in steps if (score := self._meta(step)["score"]) is not None}
        best = min(scores, key=lambda step: scores[step], default=None)
        for step in steps[: -self.keep]:
            if step != best:
                _remove(self._path(step))

    def _check(self, meta: dict[str, Any]) -> None:
        before, now = (dict(_flat(identity)) for identity in (meta["identity"], self.identity))
        names = sorted(before.keys() | now.keys())
        changed = [f"{n} {before.get(n)} -> {now.get(n)}" for n in names if before.get(n) != now.get(n)]
        if changed:
            raise ContractError(
                f"the checkpoint {self._path(meta['step'])} was made by another run: {'; '.join(changed)}. Delete "
                f"{self.folder} to start anew"
            )
        if meta["torch"] != torch.__version__:
            _log.warning("resuming with torch %s what torch %s began", torch.__version__, meta["torch"])

    def _steps(self) -> list[int]:
        return [int(path.parent.name.removeprefix("step-")) for path in self.folder.glob(f"step-{'[0-9]' * 8}/{_META}")]

    def _meta(self, step: int) -> dict[str, Any]:
        try:
            meta: dict[str, Any] = json.loads((self._path(step) / _META).read_text())
            score, state, identity, made_by = (meta[name] for name in ("score", "state", "identity", "torch"))
            good = isinstance(score, int | float | None) and isinstance(made_by, str)
            if not (good and meta["step"] == step and isinstance(state, dict) and isinstance(identity, dict)):
                raise ValueError("its fields are not those of a checkpoint")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._damaged(step, error) from error
        return meta

    def _damaged(self, step: int, error: BaseException) -> ContractError:
        return ContractError(
            f"the checkpoint {self._path(step)} is damaged: {type(error).__name__}: {str(error)[:300]}. Delete it: "
            "training goes on from the one before, or anew"
        )

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def _stand_back(device: torch.device) -> None:
    """Where training needs all cores, this thread takes what it leaves idle: a priority is a thread's own on Linux.

    So is the current GPU, which would be the first one of all: each rank would have a context there.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, 19)


def _remove(path: Path) -> None:
    """At one stroke: half a checkpoint never has its name."""
    if path.exists():
        doomed = path.rename(path.with_name(f".{path.name}.{time.time_ns()}"))
        shutil.rmtree(doomed, ignore_errors=True)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else key)
    else:
        yield name, value
