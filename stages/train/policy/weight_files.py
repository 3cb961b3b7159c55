"""Safetensors files of bounded size, with the index that transformers and vLLM find tensors by."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

FILE_BYTES = 5 * 10**9  # of one file; as transformers


class WeightFiles:
    """`model.safetensors`, or `model-00001-of-00003.safetensors`, .. with `model.safetensors.index.json`."""

    def __init__(self, folder: Path, file_bytes: int):
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob("*.safetensors*"):  # of a run that was stopped here
            earlier.unlink()
        self._folder, self._file_bytes = folder, file_bytes
        self._waiting: dict[str, torch.Tensor] = {}
        self._bytes = self._total = 0
        self._written: list[list[str]] = []  # names of tensors, file by file

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        """Hold `tensors` until a file is full; larger ones have a file of their own."""
        for name, tensor in tensors.items():
            if self._waiting and self._bytes + tensor.nbytes > self._file_bytes:
                self._write()
            self._waiting[name] = tensor
            self._bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left, give the files their names, and write the index."""
        self._write()
        count = len(self._written)
        names = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
        if count == 1:
            names = ["model.safetensors"]
        for number, name in enumerate(names):
            self._path(number).rename(self._folder / name)
        if count > 1:
            where = {tensor: name for name, tensors in zip(names, self._written, strict=True) for tensor in tensors}
            index = {"metadata": {"total_size": self._total}, "weight_map": where}
            (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))

    def _write(self) -> None:
        contiguous = {name: tensor.contiguous() for name, tensor in self._waiting.items()}
        save_file(contiguous, self._path(len(self._written)), metadata={"format": "pt"})
        self._written.append(list(contiguous))
        self._total += self._bytes
        self._waiting, self._bytes = {}, 0

    def _path(self, number: int) -> Path:
        return self._folder / f"unfinished-{number:05d}.safetensors"
