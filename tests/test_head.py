"""Log-probs of targets in chunks: the same values and gradients as in one piece, in bounded memory."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stages.logps.head import LogitRule, _logits, target_logps


def head(vocabulary: int, hidden: int, bias: bool = False) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(hidden, vocabulary, bias=bias)


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(scale=0.5), LogitRule(soft_cap=1.5), LogitRule(0.5, 1.5)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 19, 20, 50])
def test_values_and_gradients_are_those_of_log_softmax(rule: LogitRule, bias: bool, rows: int) -> None:
    lm_head, targets = head(50, 8, bias), torch.randint(50, (20,))
    weights = torch.linspace(-1, 2, 20)

    def of(values: torch.Tensor, hidden: torch.Tensor) -> list[torch.Tensor]:
        return [values, *torch.autograd.grad((values * weights).sum(), [hidden, *lm_head.parameters()])]

    hidden = torch.linspace(-4, 4, 160).view(20, 8).requires_grad_()
    ours = of(target_logps(lm_head, hidden, targets, rule, chunk=rows * 50), hidden)
    logits = lm_head(hidden) * rule.scale
    if rule.soft_cap is not None:
        logits = rule.soft_cap * torch.tanh(logits / rule.soft_cap)
    whole = of(logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], hidden)
    for mine, theirs in zip(ours, whole, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_the_sum_of_squared_probabilities() -> None:
    lm_head, targets, hidden = head(50, 8), torch.randint(50, (20,)), torch.randn(20, 8, requires_grad=True)
    both = target_logps(lm_head, hidden, targets, LogitRule(), chunk=150, squares=True)
    probabilities = lm_head(hidden).softmax(-1)
    torch.testing.assert_close(both[1], probabilities.square().sum(-1).log().detach())
    both.sum().backward()  # the second row has no gradient
    expected = probabilities.gather(1, targets[:, None]).log().sum()
    torch.testing.assert_close(hidden.grad, torch.autograd.grad(expected, hidden)[0])


def test_a_frozen_head_still_passes_gradients_on() -> None:
    lm_head, targets = head(50, 8).requires_grad_(False), torch.randint(50, (20,))
    hidden = torch.randn(20, 8, requires_grad=True)
    target_logps(lm_head, hidden, targets, LogitRule(), chunk=150).sum().backward()
    expected = lm_head(hidden).log_softmax(-1).gather(1, targets[:, None]).sum()
    torch.testing.assert_close(hidden.grad, torch.autograd.grad(expected, hidden)[0])
    assert lm_head.weight.grad is None


def test_bfloat16_weights_are_soft_maxed_in_float32() -> None:
    lm_head, targets = head(3000, 16).bfloat16(), torch.randint(3000, (64,))
    hidden = torch.randn(64, 16, dtype=torch.bfloat16, requires_grad=True)
    values = target_logps(lm_head, hidden, targets, LogitRule(), chunk=3000 * 10)
    exact = lm_head(hidden).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, exact, atol=1e-5, rtol=0)
    values.sum().backward()
    assert hidden.grad.dtype == lm_head.weight.grad.dtype == torch.bfloat16


def test_huge_logits_do_not_overflow() -> None:
    lm_head = head(4, 1)
    with torch.no_grad():
        lm_head.weight.copy_(torch.tensor([[1e4], [0.0], [-1e4], [1e4]]))
    values = target_logps(lm_head, torch.ones(2, 1), torch.tensor([0, 2]), LogitRule())
    torch.testing.assert_close(values, torch.tensor([-0.6931472, -20000.693]))


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns, while it is active."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize(("tokens", "vocabulary"), [(100, 5_000), (400, 5_000), (100, 20_000), (400, 20_000)])
def test_no_tensor_is_larger_than_a_chunk(tokens: int, vocabulary: int) -> None:
    lm_head, chunk = head(vocabulary, 4), 5 * vocabulary
    hidden, targets = torch.randn(tokens, 4, requires_grad=True), torch.randint(vocabulary, (tokens,))
    with LargestTensor() as largest:
        target_logps(lm_head, hidden, targets, LogitRule(), chunk).sum().backward()
    assert largest.elements <= chunk


@pytest.mark.parametrize("bias", [False, True])
def test_on_a_gpu_logits_are_float32_out_of_the_product(bias: bool) -> None:
    """By dtypes alone, which torch knows of a GPU that is not there."""
    with FakeTensorMode(), torch.no_grad():
        hidden, weight = (torch.empty(n, 16, dtype=torch.bfloat16, device="cuda") for n in (40, 300))
        logits = _logits(hidden, weight, torch.empty(300, dtype=torch.bfloat16, device="cuda") if bias else None)
    assert (logits.device.type, logits.dtype, logits.shape) == ("cuda", torch.float32, (40, 300))
