"""Reads checkpoints of torch.distributed.checkpoint without running what may stand in them.

Its own reader unpickles the metadata and whatever is no tensor as they come, and a pickle can call anything. A
checkpoint may have lain in object storage, or on a disk that others write to: so only names are taken that it is made
of.
"""

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

from stages.errors import ContractError
from stages.names import inside

# What metadata is made of, by module; torch.Size and dtypes are named by `torch` itself.
_OF_METADATA = """Metadata MetadataIndex StorageMeta TensorStorageMetadata TensorProperties ChunkStorageMetadata
    BytesStorageMetadata _MEM_FORMAT_ENCODING"""
_NAMES: Mapping[str, Sequence[str]] = {
    "torch.distributed.checkpoint.metadata": _OF_METADATA.split(),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", "device"),
    "collections": ("OrderedDict",),
    "pathlib": ("PosixPath", "PurePosixPath"),
}


class Reader(dcp.FileSystemReader):
    """Raises ContractError where metadata is damaged, or names what no checkpoint is made of."""

    def read_metadata(self, *_: Any, **kwargs: Any) -> Metadata:
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as file:
            content = file.read()
        try:
            metadata = _Unpickler(io.BytesIO(content)).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f"it holds a {type(metadata).__name__}")
        except Exception as error:  # a damaged pickle raises whatever the opcode that it has become does
            raise ContractError(
                f"the checkpoint's {path} is damaged: {type(error).__name__}: {error}. Delete its folder: training "
                "goes on from the one before, or anew"
            ) from error
        if metadata.storage_meta is None:
            metadata.storage_meta = dcp.metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        for stored in metadata.storage_data.values():
            inside(stored.relative_path, str(path))
        return metadata


class Planner(DefaultLoadPlanner):
    """What is no tensor is plain data."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        try:
            plain = torch.load(value, weights_only=True)
        except Exception as error:  # as above
            raise ContractError(
                f"the checkpoint's {read_item.dest_index.fqn} is no plain data: {str(error).splitlines()[0]}. Delete "
                "its folder: training goes on from the one before, or anew"
            ) from error
        made = io.BytesIO()
        torch.save(plain, made)
        made.seek(0)
        super().load_bytes(read_item, made)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _NAMES.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, of which no checkpoint is made")
