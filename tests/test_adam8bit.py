"""Moments in eight bits: what is kept of a number, and what a run with them is beside one without."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import figures, weights

from stages.train.config import TrainConfig, TrainResources
from stages.train.job import Job
from stages.train.policy.adam8bit import AdamW8bit, decoded, encode
from stages.train.worker import Worker


def kept(values: torch.Tensor, step: int, signed: bool, block: int = 16) -> torch.Tensor:
    """Values [K] as they come back."""
    rows = values[None]
    codes, scales = torch.empty(rows.shape, dtype=torch.uint8), torch.empty(1, rows.shape[1] // block)
    encode(rows, codes, scales, step, signed)
    return decoded(codes, scales, signed)[0]


numbers = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@settings(deadline=None)
@given(st.lists(numbers, min_size=32, max_size=32), st.integers(1, 10**6), st.booleans())
def test_a_number_comes_back_within_a_level(values: list[float], step: int, signed: bool) -> None:
    """Of three bits and a sign, or four bits; the least level is 2^-19 or 2^-20 of the block's largest."""
    given = torch.tensor(values) if signed else torch.tensor(values).abs()
    back = kept(given, step, signed)
    largest = given.view(2, 16).abs().amax(1, keepdim=True).expand(2, 16).flatten()
    relative, least = (2**-3, 2**-18) if signed else (2**-4, 2**-19)
    assert ((back - given).abs() <= relative * given.abs() + least * largest).all()
    assert (back[given == 0] == 0).all()


def test_rounding_evens_out_over_steps() -> None:
    """So that a mean that moves by a thousandth a step does move."""
    torch.manual_seed(0)
    for signed in (True, False):
        values = torch.randn(512) * torch.logspace(-3, 0, 512)
        values = values if signed else values.abs()
        mean = torch.stack([kept(values, step, signed, 256) for step in range(1, 257)]).mean(0)
        assert ((mean - values).abs() <= 0.005 * values.abs() + 1e-7).all()


def test_what_moments_take() -> None:
    """Two bytes a number and two scales a block; what has no even blocks keeps floats."""
    shapes = {
        (8, 512): 8 * 512 * 2 + 8 * 2 * 2 * 4,
        (8, 576): 8 * 576 * 2 + 8 * 3 * 2 * 4,
        (6, 7, 16): 42 * 16 * 2 + 42 * 8,
    }
    shapes |= {(512,): 512 * 8, (4, 509): 4 * 509 * 8}
    for shape, wanted in shapes.items():
        weight = torch.nn.Parameter(torch.ones(shape))
        weight.grad = torch.ones(shape)
        optimizer = AdamW8bit([weight], 1e-3, (0.9, 0.999), 1e-8, 0.0)
        optimizer.step()
        assert sum(each.nbytes for name, each in optimizer.state[weight].items() if name != "step") == wanted, shape
        torch.testing.assert_close(weight.detach(), torch.full(shape, 1 - 1e-3))  # the first step is the sign's


@pytest.mark.usefixtures("alone")
def test_a_run_is_close_to_one_in_floats_and_goes_on_exactly(inputs: tuple, tiny_model: Path, tmp_path: Path) -> None:
    config = TrainConfig(policy=str(tiny_model), global_batch=5, max_steps=8, epochs=9, lr=1e-3)
    job = Job(config, TrainResources(checkpoint_steps=4), *inputs, tmp_path / "floats", 128)
    eight = replace(job, config=config.model_copy(update={"optimizer": "adamw_8bit"}), out=tmp_path / "whole")
    again = replace(eight, out=tmp_path / "again")
    for each in (job, eight):
        each.out.mkdir()
        Worker(each).run()
    losses = [[loss for (loss,) in figures(each.out, ["loss"])[1:]] for each in (job, eight)]
    assert losses[1][0] == losses[0][0]
    assert losses[1][-1] < 0.5 * losses[1][0]
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), atol=0.01, rtol=0)

    shutil.copytree(eight.out / "checkpoints" / "step-00000004", again.out / "checkpoints" / "step-00000004")
    shutil.copy(eight.out / "metrics.jsonl", again.out)
    Worker(again).run()
    assert figures(again.out, ["step", "loss", "grad_norm"]) == figures(eight.out, ["step", "loss", "grad_norm"])
    expected = weights(eight.out)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(again.out).items())
