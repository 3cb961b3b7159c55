"""Attention over stretches in one call of a kernel for variable lengths: indices, ends and windows, on a CPU.

The kernel itself needs a GPU (tests/gpu). Here it is written out as torch documents it.
"""

import pytest
import torch

from stages.logps import attention
from stages.logps.layout import Stretches
from stages.logps.one_by_one import one_by_one
from tests.gpu.kernel import by_definition


def without_groups(*inputs, scale=None, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
    """As torch had it before 2.12."""
    return by_definition(*inputs, scale=scale, window_size=window_size)


@pytest.mark.parametrize("window", [None, 1, 3, 6, 50])
@pytest.mark.parametrize(("heads", "kernel"), [(2, by_definition), (4, by_definition), (4, without_groups)])
def test_one_call_is_a_call_a_stretch(window: int | None, heads: int, kernel) -> None:  # type: ignore[no-untyped-def]
    """Values, and gradients of all three, in float64; two trunks, a pair without one, a stretch of one token."""
    stretches = Stretches.of([9, 4, 1, 5, 12, 7, 2], [0, 6, 0, 0, 0, 11, 0])
    torch.manual_seed(0)
    shapes = [(1, heads, 40, 8), (1, 2, 40, 8), (1, 2, 40, 8)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weights = torch.randn(1, 40, heads, 8, dtype=torch.float64)
    one = attention.over_stretches(kernel, *inputs, stretches, 0.3, window)
    many = one_by_one(*inputs, stretches, 0.3, window, None)
    torch.testing.assert_close(one, many, atol=1e-12, rtol=0)
    found, expected = (torch.autograd.grad((each * weights).sum(), inputs) for each in (one, many))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", [None, 3])
def test_a_sink_takes_its_share(window: int | None) -> None:
    """In the kernel's sums, as where scores are written out; values, and gradients of all four, in float64."""
    stretches = Stretches.of([9, 4, 1, 5], [0, 6, 0, 0])
    torch.manual_seed(0)
    shapes = [(1, 4, 19, 8), (1, 2, 19, 8), (1, 2, 19, 8), (4,)]
    *inputs, sinks = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    given = stretches, 0.3, window, None
    wider = torch.cat([inputs[2], inputs[2][..., :1]], -1)  # the kernel takes values as wide as keys
    summed, written = one_by_one(*inputs, *given, sinks), one_by_one(*inputs[:2], wider, *given, sinks)[..., :8]
    torch.testing.assert_close(summed, written, atol=1e-12, rtol=0)
    weights = torch.randn(summed.shape, dtype=torch.float64)
    found, expected = (torch.autograd.grad((each * weights).sum(), [*inputs, sinks]) for each in (summed, written))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)
    none = one_by_one(*inputs, *given, torch.full((4,), -1e3, dtype=torch.float64))
    torch.testing.assert_close(none, one_by_one(*inputs, *given), atol=1e-12, rtol=0)
    assert (none - summed).abs().max() > 0.1


@pytest.mark.parametrize(
    ("head_size", "value_size", "capability", "takes"),
    [
        (128, 128, (8, 0), True),
        (256, 256, (9, 0), True),
        (16, 16, (12, 0), True),
        (192, 128, (9, 0), False),  # latent attention
        (512, 512, (9, 0), False),  # Gemma 4's full layers
        (100, 100, (9, 0), False),
        (128, 128, (7, 5), False),
    ],
)
def test_which_heads_and_gpus_the_kernel_is_for(
    head_size: int, value_size: int, capability: tuple[int, int], takes: bool
) -> None:
    assert attention.takes(head_size, value_size, capability) == takes
