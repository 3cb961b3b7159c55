"""The linear layer by oneDNN, against torch.nn.functional.linear. Where the CPU has no AVX-512 they are the same."""

import pytest
import torch
from torch.nn import functional

from stages.logps.linear import _FASTER, linear, product


@pytest.mark.parametrize("shape", [(1, 8), (5, 8), (2, 3, 8)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], with_bias: bool) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(16, 8), torch.randn(16) if with_bias else None
    given = [each.requires_grad_() for each in (x, weight, bias) if each is not None]
    results = []
    for function in (linear, functional.linear):
        output = function(x, weight, bias)
        # The gradient of a sum is one number, expanded: a tensor without memory of its own.
        results.append([output, *torch.autograd.grad(output.sum(), given, retain_graph=True)])
        results[-1] += torch.autograd.grad(output.square().sum(), given)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_operator_is_sound() -> None:
    if not _FASTER:
        pytest.skip("needs AVX-512")
    samples = torch.randn(5, 8, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    torch.library.opcheck(product, samples)
    torch.library.opcheck(product, (torch.randn(8, 5).t(), torch.randn(8, 16).t()))


def test_other_precisions_are_left_to_torch() -> None:
    x, weight = torch.randn(5, 8, dtype=torch.bfloat16), torch.randn(16, 8, dtype=torch.bfloat16)
    assert torch.equal(linear(x, weight), functional.linear(x, weight))
