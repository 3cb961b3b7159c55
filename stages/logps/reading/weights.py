"""Weights read from a model's files into the model where it lies: a rank's own slices alone, or whole tensors.

transformers' own loader does it, so that names are changed, experts stacked and weights tied as by `from_pretrained`.
It is given a model on the meta device that FSDP has sharded already, and reads of each tensor what this rank holds. So
a rank has its shards and one piece in memory, and the ranks of a node read each byte once between them.
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig, _get_resolved_checkpoint_files

from stages.errors import RecipeError
from stages.logps import nf4
from stages.logps.reading.adapter import Adapter
from stages.model_files import split_revision

ADAPTER = ".lora_"  # in the name of a weight that no file of the model has
_BASE = ".base_layer."  # peft's name for the layer that has an adapter


def weight_files(name: str, explicit: str | None = None) -> list[str] | None:
    """The model's files on this node; None where they are not safetensors, of which alone slices can be read."""
    folder, revision = split_revision(name)
    files, _ = _get_resolved_checkpoint_files(
        folder, variant=None, gguf_file=None, use_safetensors=None, user_agent=None, is_remote_code=False,
        transformers_explicit_filename=explicit, download_kwargs={"revision": revision},
    )  # fmt: skip
    return files if all(file.endswith(".safetensors") for file in files) else None


def is_read(causal_lm: PreTrainedModel) -> bool:
    """Whether the model has its weights; adapters are no part of it."""
    weights = causal_lm.named_parameters()
    return not any(weight.device.type == "meta" for key, weight in weights if ADAPTER not in key)


@torch.no_grad()
def read_weights(causal_lm: PreTrainedModel, name: str, device: torch.device) -> None:
    """Read the weights of a model that has none yet, on `device`, in the precision that it was described in.

    Where a parameter is sharded, this rank's shard alone is read. What is frozen stays frozen; adapters are left alone.
    Buffers are computed. All ranks may call this at their own pace. Raises RecipeError where a tensor is missing, has
    another shape, or cannot be read by shards.
    """
    if is_read(causal_lm):
        return
    # Else four threads read ahead, of a mixture of experts all of its pieces before the first are put together.
    os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")
    frozen = {key for key, weight in causal_lm.named_parameters() if not weight.requires_grad}
    files = weight_files(name, getattr(causal_lm.config, "transformers_weights", None))
    assert files is not None, f"{name} was described, but has no safetensors"
    wanted = LoadStateDictConfig(
        pretrained_model_name_or_path=name,
        device_map={"": device},
        dtype=causal_lm.dtype,
        dtype_plan=causal_lm._get_dtype_plan(causal_lm.dtype),
        weight_mapping=get_model_conversion_mapping(causal_lm),
    )
    with ExitStack() as opened:
        pointers = [opened.enter_context(safe_open(file, framework="pt")) for file in files]
        slices = {key: _Slice(pointer, key) for pointer in pointers for key in pointer.keys()}  # noqa: SIM118
        adapter = Adapter(name)
        named = dict(_named(causal_lm, slices, wanted.weight_mapping, adapter))
        adapter.check()
        found, _ = convert_and_load_state_dict_in_model(causal_lm, named, wanted, None)
    found.missing_keys = {key for key in found.missing_keys if ADAPTER not in key}
    _check(causal_lm, found, name)
    tied = set(causal_lm.all_tied_weights_keys)
    causal_lm._finalize_model_loading(causal_lm, wanted, found)  # ties, and computes buffers
    if is_sharded(causal_lm) and tied != set(causal_lm.all_tied_weights_keys):
        raise RecipeError(
            f"{name} is said to tie {', '.join(sorted(tied))} to another weight (tie_word_embeddings in its "
            "config.json), but its files have two that differ. Set tie_word_embeddings to false there"
        )
    for key, weight in causal_lm.named_parameters():
        weight.requires_grad_(key not in frozen)


def is_sharded(causal_lm: PreTrainedModel) -> bool:
    return any(isinstance(weight, DTensor) and weight.device_mesh.size() > 1 for weight in causal_lm.parameters())


class _Slice:
    """A tensor of a file: what is asked of it is read when it is asked, into memory of its own."""

    def __init__(self, file: Any, key: str):
        self._slice = file.get_slice(key)

    def get_shape(self) -> list[int]:
        shape: list[int] = self._slice.get_shape()
        return shape

    def get_dtype(self) -> str:
        dtype: str = self._slice.get_dtype()
        return dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        found: torch.Tensor = self._slice[index]
        return found.clone()  # it may be a view of the mapped file, which a weight must not be


class _Nf4Rows:
    """A tensor of a file, as codes or scales of four-bit weights: of rows that are read when they are asked for."""

    def __init__(self, weight: Any, kind: str, both: dict[str, Any]):
        self._weight, self._kind, self._both = weight, kind, both  # `both`: shared with the other kind

    def get_shape(self) -> list[int]:
        out, width = self._weight.get_shape()
        return [out, width // (2 if self._kind == "codes" else nf4.BLOCK)]

    def get_dtype(self) -> str:
        return "U8" if self._kind == "codes" else "BF16"

    def __getitem__(self, index: Any) -> torch.Tensor:
        rows = index[0] if isinstance(index, tuple) else slice(0, self.get_shape()[0])
        if self._kind not in self._both:
            codes, scales = nf4.quantize(self._weight[rows, :])
            self._both |= {"codes": codes, "scales": scales}
        found: torch.Tensor = self._both.pop(self._kind)  # the other one is asked for next
        return found


def _named(
    causal_lm: PreTrainedModel, slices: dict[str, _Slice], mapping: list[Any], adapter: Adapter
) -> Iterator[tuple[str, Any]]:
    """What is in the files, by the names there, or by those of layers that have got adapters or four-bit weights."""
    state = causal_lm.state_dict()
    plain = {key.replace(_BASE, "."): key for key in state}
    layers = [
        key.removesuffix(".codes")
        for key, weight in state.items()
        if key.endswith(".codes") and weight.dtype == torch.uint8
    ]
    quantized = {f"{layer.removesuffix('.base_layer')}.weight": layer for layer in layers}
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    for key in sorted(slices, key=dot_natural_key):
        final, pattern = rename_source_key(key, renamings, converters, causal_lm.base_model_prefix, plain | quantized)
        if final in quantized:
            both: dict[str, Any] = {}
            for kind in ("codes", "scales"):
                yield f"{quantized[final]}.{kind}", _Nf4Rows(adapter.on(final, slices[key]), kind, both)
            continue
        target = plain.get(final, final)
        if pattern is not None and (weight := state.get(target)) is not None:
            _check_conversion(by_pattern[pattern].operations, weight, target, adapter.name)
        yield target if target != final else key, slices[key] if pattern else adapter.on(final, slices[key])


def _check_conversion(operations: list[ConversionOps], weight: torch.Tensor, key: str, name: str) -> None:
    """Raises RecipeError where slices of what is in the files do not make a slice of the weight."""
    if not isinstance(weight, DTensor) or weight.device_mesh.size() == 1:
        return
    for axis in {placement.dim for placement in weight.placements if isinstance(placement, Shard)}:
        for operation in operations:
            if isinstance(operation, MergeModulelist):
                fits = operation.dim == 0
            else:
                fits = isinstance(operation, Chunk | Concatenate) and operation.dim % weight.ndim != axis
            if not fits:
                raise RecipeError(
                    f"{name} cannot be read by shards: {key} is made of its files by {type(operation).__name__} along "
                    "the axis that ranks share. Save it by save_pretrained(.., save_original_format=False) of "
                    "transformers, or train on one worker"
                )


def _check(causal_lm: PreTrainedModel, found: Any, name: str) -> None:
    """Raises RecipeError where what was read is not the whole model."""
    if found.mismatched_keys:
        key, there, wanted = min(found.mismatched_keys)
        raise RecipeError(f"{name}: {key} is {list(there)} in its files, and {list(wanted)} by its config.json")
    if found.conversion_errors:
        key, error = min(found.conversion_errors.items())
        raise RecipeError(f"{name}: {key} cannot be made from its files: {error.strip().splitlines()[-1]}")
    read = causal_lm.state_dict().keys() - found.missing_keys
    good = {key for pair in causal_lm.all_tied_weights_keys.items() if read & set(pair) for key in pair}
    ignored = re.compile("|".join(causal_lm._keys_to_ignore_on_load_missing or ["(?!)"]))
    lacking = sorted(key for key in found.missing_keys - good if not ignored.search(key))
    if lacking:
        raise RecipeError(
            f"{name}: {', '.join(lacking[:4])}{' and others' if len(lacking) > 4 else ''} ({len(lacking)} tensors) are "
            "not in its files. They would be random: fetch or save the model again"
        )
