"""Rows of an embedding learn as torch's own do, over any number of micro-batches, and beside a head that is tied."""

import pytest
import torch
from torch import nn

from stages.logps.embedding import Embedding
from stages.logps.head import LogitRule, target_logps


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_micro_batches_are_added_in_place(padding: int | None, bias: bool) -> None:
    """Row 3 comes twice in each; it learns nothing where it is padding. The head is tied to the embedding."""
    torch.manual_seed(0)
    own = nn.Embedding(11, 4, padding)
    taken = nn.Embedding(11, 4, padding, _weight=own.weight.detach().clone())
    Embedding.take_over(taken)
    head = nn.Linear(4, 11, bias)
    head.weight = taken.weight
    offsets = head.bias.detach().clone().requires_grad_() if bias else torch.zeros(11)
    batches = [torch.randint(0, 11, (1, 7)) for _ in range(3)]
    batches = [torch.cat([ids, torch.tensor([[3, 3]])], 1) for ids in batches]
    first = None
    for ids in batches:
        targets = ids[0].roll(-1)
        (own(ids)[0] @ own.weight.t() + offsets).log_softmax(1).gather(1, targets[:, None]).sum().backward()
        target_logps(head, taken(ids)[0], targets, LogitRule(), chunk=22).sum().backward()
        assert taken.weight.grad is not None
        first = first or taken.weight.grad.data_ptr()
    assert taken.weight.grad is not None
    assert taken.weight.grad.data_ptr() == first
    torch.testing.assert_close(taken.weight.grad, own.weight.grad, rtol=1e-5, atol=1e-5)
    if bias:
        torch.testing.assert_close(head.bias.grad, offsets.grad, rtol=1e-5, atol=1e-5)


def test_no_gradient_as_large_as_the_weight_is_made_after_the_first() -> None:
    taken = nn.Embedding(11, 4)
    Embedding.take_over(taken)
    seen: list[torch.Tensor | None] = []  # what autograd passes on
    taken.weight.register_hook(seen.append)
    for _ in range(3):
        taken(torch.tensor([1, 5])).sum().backward()
    assert [each is None for each in seen] == [False, True, True]
    assert taken.weight.grad is not None
    assert taken.weight.grad[1].tolist() == [3.0] * 4
