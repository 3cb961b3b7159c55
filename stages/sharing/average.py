"""The weighted average of policies of one architecture, a tensor at a time (model soups, Wortsman and others, 2022,
2203.05482); or of what they have learnt, without that on which they disagree (TIES, Yadav and others, 2306.01708).
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from stages.errors import ContractError, RecipeError
from stages.model_files import adapter_at, json_object
from stages.progress import Progress, Silent
from stages.train.policy.weight_files import FILE_BYTES, WeightFiles


class Ties(NamedTuple):
    """Of the changes to each tensor of `base` the largest stay, a share `density` of them; of these, at each place, the
    weighted mean of those that have the sign of their sum is added to `base`, as peft computes it.
    """

    base: Path
    density: float


def average(
    folders: Sequence[Path], weights: Sequence[float], out: Path, progress: Progress | None = None,
    ties: Ties | None = None, file_bytes: int = FILE_BYTES,
) -> None:  # fmt: skip
    """Write `out`, which must not be there: each tensor the sum of the folders' own, times their weights, in float32,
    and then in the precision of the first. All else (config, tokenizer) is the first folder's. With `ties` it is its
    base and what they agree on, and the weights need not sum to 1.

    It holds a tensor of each, and one file of the result. Raises RecipeError or ContractError where they have no
    average: of two architectures, with other tensors or shapes, or adapters.
    """
    if out.exists():
        raise RecipeError(f"{out} is there already. Name a folder that is not, or remove it")
    _check_weights(folders, weights, ties)
    every = [*folders, *([ties.base] if ties else [])]
    _check_alike(every)
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    progress = progress or Silent()
    with _opened(every) as models:
        names = _names(every, models)
        files = WeightFiles(unfinished, file_bytes)
        progress.start(len(names), 0, "tensors")
        for done, name in enumerate(names, 1):
            tensors = _alike(name, [model[name].get_tensor(name) for model in models], every)
            if not tensors[0].is_floating_point():
                files.add({name: tensors[0]})
            elif ties is None:
                files.add({name: _mean(tensors, weights)})
            else:
                files.add({name: _agreed(tensors[:-1], tensors[-1], weights, ties.density)})
            progress.advance(done)
    files.close()
    for path in folders[0].iterdir():
        if path.is_file() and not path.name.startswith(".") and ".safetensors" not in path.name:
            shutil.copy(path, unfinished / path.name)
    told: list[dict[str, Any]] = [
        {"policy": str(folder), "weight": weight} for folder, weight in zip(folders, weights, strict=True)
    ]
    if ties is not None:
        told.append({"base": str(ties.base), "density": ties.density})
    (unfinished / "average.json").write_text(json.dumps(told, indent=1) + "\n")
    unfinished.rename(out)


def _alike(name: str, tensors: list[torch.Tensor], folders: Sequence[Path]) -> list[torch.Tensor]:
    first = tensors[0]
    for folder, tensor in zip(folders, tensors, strict=True):
        if tensor.shape != first.shape:
            raise ContractError(
                f"{name} is {list(first.shape)} in {folders[0]}, and {list(tensor.shape)} in {folder}: only policies "
                "of one shape have an average"
            )
    if not first.is_floating_point() and any(not torch.equal(first, tensor) for tensor in tensors):
        raise ContractError(f"{name} is of {first.dtype}, which has no average, and differs between the policies")
    return tensors


def _mean(tensors: list[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    total = torch.zeros(tensors[0].shape, dtype=torch.float32)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.float(), alpha=weight)
    return total.to(tensors[0].dtype)


def _agreed(tensors: list[torch.Tensor], base: torch.Tensor, weights: Sequence[float], density: float) -> torch.Tensor:
    from peft.utils.merge_utils import ties

    start = base.float()
    changes = [tensor.float() - start for tensor in tensors]
    return (start + ties(changes, torch.tensor(weights), density)).to(tensors[0].dtype)


@contextmanager
def _opened(folders: Sequence[Path]) -> Iterator[list[dict[str, Any]]]:
    """Of each folder, the open file of each tensor. Nothing is read yet."""
    with ExitStack() as stack:
        found = []
        for folder in folders:
            files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob("*.safetensors"))]
            if not files:
                raise RecipeError(f"{folder} holds no *.safetensors. Name the folder of an exported policy")
            found.append({name: file for file in files for name in list(file.keys())})
        yield found


def _names(folders: Sequence[Path], models: list[dict[str, Any]]) -> list[str]:
    for folder, model in zip(folders, models, strict=True):
        if odd := sorted(model.keys() ^ models[0].keys()):
            only = folder if odd[0] in model else folders[0]
            raise ContractError(
                f"{folders[0]} and {folder} have not the same tensors: {len(odd)} are in one alone, first {odd[0]} "
                f"in {only}. Only policies of one architecture have an average"
            )
    return list(models[0])


def _check_weights(folders: Sequence[Path], weights: Sequence[float], ties: Ties | None) -> None:
    if len(folders) < 2:
        raise RecipeError(f"an average is of two policies at least, and {len(folders)} is named")
    if len(weights) != len(folders):
        raise RecipeError(
            f"there are {len(weights)} weights for {len(folders)} policies. Give one each: --weights 0.5,0.5"
        )
    if ties is not None and not 0 < ties.density <= 1:
        raise RecipeError(f"--density {ties.density:g} is no share of the changes: give one above 0, at most 1")
    if ties is None and abs(sum(weights) - 1) > 1e-3:
        raise RecipeError(
            f"the weights {', '.join(f'{each:g}' for each in weights)} sum to {sum(weights):g}, and an average's to 1"
        )


def _check_alike(folders: Sequence[Path]) -> None:
    first: dict[str, Any] = {}
    for folder in folders:
        if adapter_at(str(folder)):
            raise RecipeError(
                f"{folder} is an adapter, and the product of averages is not the average of products. Export merged "
                "policies: train.lora.merge: true"
            )
        path = folder / "config.json"
        if not path.is_file():
            raise RecipeError(f"{folder} holds no config.json. Name the folder of an exported policy")
        config = json_object(path.read_bytes(), str(path))
        first = first or config
        for key in ("model_type", "architectures", "tie_word_embeddings"):
            if config.get(key) != first.get(key):
                raise ContractError(
                    f"{key} is {first.get(key)} in {folders[0]}, and {config.get(key)} in {folder}. Only policies of "
                    "one architecture have an average"
                )
