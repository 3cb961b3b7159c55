"""The linear layer by oneDNN, against torch.nn.functional.linear, whichever is the faster here; and the choice."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from stages.logps import linear as module
from stages.logps.linear import choose, linear, product

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs a torch with oneDNN")


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_by_onednn", True)


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
    samples = torch.randn(5, 8, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    torch.library.opcheck(product, samples)
    torch.library.opcheck(product, (torch.randn(8, 5).t(), torch.randn(8, 16).t()))


def test_other_precisions_are_left_to_torch() -> None:
    x, weight = torch.randn(5, 8, dtype=torch.bfloat16), torch.randn(16, 8, dtype=torch.bfloat16)
    assert torch.equal(linear(x, weight), functional.linear(x, weight))


def test_the_library_is_chosen_once_for_a_kind_of_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = choose()
    (kept,) = tmp_path.glob("raydpo/products/*")
    assert kept.read_text().startswith("onednn" if first else "torch")
    kept.write_text("torch" if first else "onednn")
    assert choose() is not first  # what is kept decides, whatever a second measurement would say
    monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "AVX2")
    choose()
    assert len(list(tmp_path.glob("raydpo/products/*"))) == 2


def test_a_home_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choose() in (True, False)
