"""Float32 products on CPUs by the faster of two libraries: MKL, which torch takes by itself, or oneDNN.

Which one that is differs between makers and instruction sets, by a factor of 2 either way, so it is measured.
"""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from stages.storage.named import copies

_SHAPES = ((512, 576, 1536), (512, 1536, 576), (256, 2048, 2048))  # rows, inputs, outputs: of layers of models
_ROUNDS = 4
_GAIN = 1.1  # by which oneDNN has to be the faster one; less may be noise
_by_onednn = False


def choose() -> bool:
    """Let `linear` use the faster library in this process from now on; True where that is oneDNN.

    Measured once for a kind of CPU, its instructions and a number of threads, in less than a second, and kept beside
    what a node has fetched: a run that goes on after a stop must round as it did before.
    """
    global _by_onednn
    kept = copies().with_name("products") / hashlib.sha256(_kind().encode()).hexdigest()[:16]
    try:
        if not kept.exists():
            _write(kept, _onednn_is_faster())
        _by_onednn = kept.read_text().startswith("onednn")
    except OSError:  # a home that cannot be written
        _by_onednn = _onednn_is_faster()
    return _by_onednn


def _kind() -> str:
    cpu = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line for line in cpu if line.startswith("model name")), "")
    told = [f"{name}={os.environ.get(name)}" for name in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")]
    instructions = torch.backends.cpu.get_cpu_capability()
    return "\n".join([model, instructions, *told, f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"])


def _write(kept: Path, onednn: bool) -> None:
    """Of processes that measure at the same time, the first one is right for all."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    made = kept.with_name(f"{kept.name}.{os.getpid()}")
    made.write_text(f"{'onednn' if onednn else 'torch'}\n{_kind()}\n")
    with suppress(FileExistsError):
        os.link(made, kept)
    made.unlink()


@torch.no_grad()
def _onednn_is_faster() -> bool:
    """By the products that a layer's forward and backward pass ask for."""
    if not torch.backends.mkldnn.is_available():
        return False
    seconds = dict.fromkeys((True, False), 0.0)
    for rows, inputs, outputs in _SHAPES:
        x, weight, gradient = (torch.ones(shape) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))
        asked = ((x, weight), (gradient, weight.t()), (gradient.t(), x.t()))
        best = dict.fromkeys(seconds, float("inf"))
        for _ in range(_ROUNDS):
            for onednn in best:
                began = time.perf_counter()
                for a, b in asked:
                    product(a, b) if onednn else functional.linear(a, b)
                best[onednn] = min(best[onednn], time.perf_counter() - began)
        for onednn, least in best.items():
            seconds[onednn] += least
    return seconds[False] > _GAIN * seconds[True]


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., K] times weight [N, K] transposed, plus bias [N] -> [..., N]: torch.nn.functional.linear."""
    if not (_by_onednn and weight.device.type == "cpu" and weight.dtype == x.dtype == torch.float32):
        return functional.linear(x, weight, bias)
    output = product(x.reshape(-1, x.shape[-1]), weight).unflatten(0, x.shape[:-1])
    return output if bias is None else output + bias


class Linear(nn.Linear):
    """An nn.Linear that computes by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)

    @classmethod
    def take_over(cls, layer: nn.Linear) -> None:
        """Make a layer of a loaded model, with its weights, one of this class."""
        layer.__class__ = cls


@torch.library.custom_op("raydpo::product", mutates_args=(), device_types="cpu")
def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [M, K], b [N, K], float32 with any strides -> a @ b.t() [M, N]."""
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return output


@product.register_fake
def _(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.new_empty(a.shape[0], b.shape[0])


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def] # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    a, b = ctx.saved_tensors
    of_a = product(gradient, b.t()) if ctx.needs_input_grad[0] else None
    of_b = product(gradient.t(), a.t()) if ctx.needs_input_grad[1] else None
    return of_a, of_b


product.register_autograd(_backward, setup_context=_keep)
