"""Calibration: faults planted in cached log-probs of a real model, each named for what it is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from stages.errors import ContractError
from stages.logps.model import PairLogprobs
from stages.logps.reading.loading import load
from stages.score.calibration import Differences, judge
from stages.score.config import Acceptance
from stages.shard.config import Columns, ShardConfig
from stages.shard.tokenization import Tokenizer, load_tokenizer
from stages.shard.triple import parse

Pairs = list[tuple[list[int], list[int], list[int]]]
TRIPLES = ROOT / "configs" / "data" / "demo_triples.jsonl"


@torch.inference_mode()
def token_logps(model: PairLogprobs, pairs: Pairs) -> list[np.ndarray]:
    layout = model.lay_out(pairs)
    return [values.float().numpy() for values in layout.split(model(layout))]


@pytest.fixture(scope="module")
def pairs(smollm2: Path) -> Pairs:
    tokenizer = Tokenizer(ShardConfig(source="-", tokenizer=str(smollm2), max_length=256))
    lines = TRIPLES.read_text().splitlines()[:10]
    triples = [triple for line in lines for triple in parse(line, "conversational", Columns())]
    found = [tokenizer.one(triple) for triple in triples]
    return [(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for pair in found]


@pytest.fixture(scope="module")
def live(smollm2: Path, pairs: Pairs) -> list[np.ndarray]:
    return token_logps(load(str(smollm2), "float32", 256), pairs)


def lower_precision(folder: str, pairs: Pairs) -> list[np.ndarray]:
    return token_logps(load(folder, "bfloat16", 256), pairs)


def shifted(folder: str, pairs: Pairs) -> list[np.ndarray]:
    whole = token_logps(load(folder, "float32", 256), pairs)
    return [np.concatenate([values[1:], values[:1]]) for values in whole]


def other_weights(folder: str, pairs: Pairs) -> list[np.ndarray]:
    model = load(folder, "float32", 256)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 0.2 * torch.randn_like(weight))
    return token_logps(model, pairs)


def other_template(folder: str, pairs: Pairs) -> list[np.ndarray]:
    """As a template without the line that opens the assistant's turn."""
    opening = load_tokenizer(folder).encode("<|im_start|>assistant\n", add_special_tokens=False)
    assert all(prompt[-len(opening) :] == opening for prompt, *_ in pairs)
    cut = [(prompt[: -len(opening)], chosen, rejected) for prompt, chosen, rejected in pairs]
    return token_logps(load(folder, "float32", 256), cut)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (lower_precision, "lower precision"),
        (shifted, "positions are off by one"),
        (other_weights, "another model's weights"),
        (other_template, "scored after another prompt"),
    ],
)
def test_a_planted_fault_is_named(
    smollm2: Path, pairs: Pairs, live: list[np.ndarray], fault: Callable[[str, Pairs], list[np.ndarray]], cause: str
) -> None:
    cached = fault(str(smollm2), pairs)
    with pytest.raises(ContractError, match=cause):
        judge(Differences(cached, live), Acceptance(max_token_difference=1e-4), exact=True)


def test_a_router_may_move_a_few_tokens_far() -> None:
    chance = np.random.default_rng(0)
    live = [-5 * chance.random(100) for _ in range(20)]
    flipped = [values + np.where(np.arange(100) == 50, 2.0, 0.01 * chance.standard_normal(100)) for values in live]
    accept = Acceptance(max_token_difference=0.1)
    assert "warning" in judge(Differences(flipped, live), accept, exact=False)
    assert "warning" not in judge(Differences(flipped, live, routed=True), accept, exact=False)
    farther = [values + 0.15 * chance.standard_normal(100) for values in live]
    found = judge(Differences(farther, live, routed=True), accept, exact=False)["warning"]
    assert "the mean, or a third of the root mean square, of 2000 tokens" in found
    assert found.endswith("or its router takes other experts (score.backend: torch has the kernels of training)")


def test_bfloat16_is_refused_as_float32_and_accepted_as_bfloat16(
    smollm2: Path, pairs: Pairs, live: list[np.ndarray]
) -> None:
    found = Differences(lower_precision(str(smollm2), pairs), live)
    with pytest.raises(ContractError, match=r"more than score\.accept\.max_token_difference 0\.001"):
        judge(found, Acceptance(), exact=True)
    facts = judge(found, Acceptance(beta=0.5), exact=False)
    assert "warning" not in facts
    assert facts["margin"]["sd"] == pytest.approx(0.5 * found.margins.std())
    assert "warning" in judge(found, Acceptance(max_token_difference=facts["per token"]["sd"] / 2), exact=False)
