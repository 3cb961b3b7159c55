"""Figures of evaluation against closed forms, and their intervals by how often they hold the truth."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from stages.evaluate.statistics.agreement import calibration, correlations, pearson, ranks, spearman
from stages.evaluate.statistics.bootstrap import bootstrap, means, ratio
from stages.evaluate.statistics.divergence import kl, perplexity
from stages.evaluate.statistics.diversity import distinct
from stages.evaluate.statistics.wins import length_controlled, of_orders, of_rewards, win_rate


def test_an_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(3, 2, 2000)
    found = means({"x": values}, np.arange(2000))["x"]
    assert found.value == pytest.approx(values.mean())
    error = 1.96 * values.std() / math.sqrt(2000)
    # Of 1000 resamples a percentile has a standard error of 0.084 deviations of the mean.
    assert found.low == pytest.approx(values.mean() - error, abs=0.25 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.25 * error)


def test_samples_of_one_prompt_are_drawn_together() -> None:
    """Eight equal samples of a prompt say no more than one."""
    prompts = np.random.default_rng(1).normal(size=300)
    one = means({"x": prompts}, np.arange(300))["x"]
    eight = means({"x": np.repeat(prompts, 8)}, np.repeat(np.arange(300), 8))["x"]
    assert eight == pytest.approx(one)
    apart = means({"x": np.repeat(prompts, 8)}, np.arange(2400))["x"]
    assert apart.high - apart.low < 0.5 * (eight.high - eight.low)


def test_one_cluster_has_no_interval_and_none_no_figure() -> None:
    assert means({"x": np.array([1.0, 2.0])}, np.array(["a", "a"]))["x"] == (1.5, None, None)
    with pytest.raises(ValueError, match="no rows"):
        means({"x": np.zeros(0)}, np.zeros(0))


def test_a_ratio_is_of_sums() -> None:
    found = ratio(np.array([1.0, 8.0]), np.array([1.0, 4.0]), np.arange(2))
    assert found == (pytest.approx(9 / 5), pytest.approx(1.0), pytest.approx(2.0))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 3)), min_size=3, max_size=12))
def test_weighted_correlations_are_those_of_repeated_rows(rows: list[tuple[int, int, int]]) -> None:
    x, y, times = (np.array(column, float) for column in zip(*rows, strict=True))
    often = times.astype(int)
    if often.sum() < 2:
        return
    repeated = np.repeat(x, often), np.repeat(y, often)
    both = [np.sort(each) for each in repeated]
    for own, whole, ordered in zip((x, y), repeated, both, strict=True):
        mean_rank = (np.searchsorted(ordered, whole, "left") + np.searchsorted(ordered, whole, "right") + 1) / 2
        assert np.repeat(ranks(own, times[None])[0], often) == pytest.approx(mean_rank)
    for ours, columns in (
        (pearson, repeated),
        (spearman, [np.repeat(ranks(v, times[None])[0], often) for v in (x, y)]),
    ):
        found = ours(x, y, times[None])[0]
        if np.ptp(columns[0]) and np.ptp(columns[1]):
            assert found == pytest.approx(np.corrcoef(*columns)[0, 1], abs=1e-9)
        else:
            assert math.isnan(found)


def test_correlations_have_the_interval_of_fisher() -> None:
    """z = artanh(r) of n normal rows has the standard error 1 / sqrt(n - 3)."""
    chance = np.random.default_rng(2)
    x = chance.normal(size=1500)
    y = 0.6 * x + 0.8 * chance.normal(size=1500)
    found = correlations(x, y, np.arange(1500))
    r = np.corrcoef(x, y)[0, 1]
    error = 1.96 / math.sqrt(1497)
    assert found["pearson"].value == pytest.approx(r)
    assert math.atanh(found["pearson"].low) == pytest.approx(math.atanh(r) - error, abs=0.3 * error)
    assert math.atanh(found["pearson"].high) == pytest.approx(math.atanh(r) + error, abs=0.3 * error)
    assert found["spearman"].value == pytest.approx(6 / math.pi * math.asin(r / 2), abs=0.03)  # of normal rows
    assert found["spearman"].low < found["spearman"].value < found["spearman"].high
    assert correlations(x, np.ones(1500), np.arange(1500)) == {}


def test_labels_drawn_from_the_model_are_calibrated_and_overconfidence_is_measured() -> None:
    chance = np.random.default_rng(3)
    size = np.abs(chance.normal(0, 2, 20_000))
    right = chance.random(20_000) < 1 / (1 + np.exp(-size))
    rewards = np.where(right, size, -size)  # chosen has the greater reward as often as the model believes
    true = calibration(rewards, np.arange(20_000))
    assert true["ece"].value < 0.02
    # The same order with a confidence of nearly 1: what is missing is the share that is wrong.
    sure = calibration(np.sign(rewards) * 20, np.arange(20_000))
    assert sure["ece"].value == pytest.approx(1 - right.mean(), abs=1e-6)
    (one,) = sure["bins"]
    assert one == {
        "from": pytest.approx(0.95), "pairs": 20_000, "confidence": pytest.approx(1, abs=1e-6),
        "right": pytest.approx(right.mean()),
    }  # fmt: skip
    # A policy that is the reference believes 1/2, and is half right.
    start = calibration(np.zeros(10), np.arange(10))
    assert start["ece"].value == 0
    assert start["bins"] == [{"from": 0.5, "pairs": 10, "confidence": 0.5, "right": 0.5}]


def test_wins_ties_and_both_orders() -> None:
    assert of_rewards(np.array([2.0, 1, 1, 0.9]), np.array([1.0, 2, 1, 1])).tolist() == [1, 0, 0.5, 0]
    assert of_rewards(np.array([1.0, 2.0]), np.array([1.1, 1.0]), tie=0.2).tolist() == [0.5, 1]
    # Agreed twice; goes by the place; unsure.
    assert of_orders(np.array([1.0, 1.0, 0.5]), np.array([1.0, 0.0, 0.6])).tolist() == [1.0, 0.5, 0.55]
    found = win_rate(np.repeat([1.0, 0.5, 0.0], (60, 20, 20)), np.arange(100))
    assert found.value == pytest.approx(0.7)
    error = 1.96 * math.sqrt((60 + 5) / 100 - 0.49) / 10
    assert found.low == pytest.approx(0.7 - error, abs=0.25 * error)


def test_a_model_against_itself_wins_half() -> None:
    """Samples of one model under different seeds, several a prompt: 1/2 lies in the interval as often as it says."""
    chance, held = np.random.default_rng(4), 0
    prompts = np.repeat(np.arange(60), 4)
    for _ in range(100):
        hard = chance.normal(size=60)[prompts]
        outcomes = of_rewards(hard + chance.normal(size=240), hard + chance.normal(size=240))
        found = win_rate(outcomes, prompts)
        held += found.low <= 0.5 <= found.high
    assert held >= 86  # of 95; four standard deviations
    same = win_rate(of_rewards(hard, hard), prompts)
    assert same == (0.5, 0.5, 0.5)


def test_the_length_controlled_rate_is_the_logistic_regression_s() -> None:
    """Of two differences in length alone the regression has a solution in closed form."""
    longer_by = np.repeat([30.0, -30.0], (100, 100))
    outcomes = np.concatenate([np.repeat([1.0, 0.0], (80, 20)), np.repeat([1.0, 0.0], (30, 70))])
    found = length_controlled(outcomes, longer_by, np.arange(200))
    middle = (math.log(80 / 20) + math.log(30 / 70)) / 2
    assert found.value == pytest.approx(1 / (1 + math.exp(-middle)), abs=1e-3)  # 1e-3: the ridge
    # Length decides all, and the policy is longer: it has won by that alone.
    chance = np.random.default_rng(5)
    longer_by = chance.normal(20, 30, 2000)
    outcomes = (chance.random(2000) < 1 / (1 + np.exp(-3 * np.tanh(longer_by / 30)))).astype(float)
    controlled, plain = length_controlled(outcomes, longer_by, np.arange(2000)), win_rate(outcomes, np.arange(2000))
    assert controlled.low < 0.5 < controlled.high
    assert plain.low > 0.6
    # Where lengths are alike, or all is won, there is a figure all the same.
    assert length_controlled(np.array([1.0, 1.0, 0.0]), np.zeros(3), np.arange(3)).value == pytest.approx(
        2 / 3, abs=0.01
    )
    assert length_controlled(np.ones(50), np.arange(50.0), np.arange(50)).value > 0.99


def test_distinct_n_grams() -> None:
    assert distinct([[1, 2, 1, 2], [1, 2]], 1) == pytest.approx(2 / 6)
    assert distinct([[1, 2, 1, 2], [1, 2]], 2) == pytest.approx(2 / 4)  # (1, 2) three times, (2, 1) once
    assert distinct([[1], []], 2) is None


def test_perplexity_is_of_tokens() -> None:
    found = perplexity(np.log([0.5, 0.25**3]), np.array([1, 3]), np.arange(2))
    assert found == (pytest.approx((0.5 * 0.25**3) ** -0.25), pytest.approx(2), pytest.approx(4))


@pytest.fixture(scope="module")
def toy() -> tuple[np.ndarray, np.ndarray]:
    """Log-probs of each token of all 625 sequences of 4 of 5 tokens by two random models, [625, 4] nats each."""
    sequences = torch.tensor(list(product(range(5), repeat=4)))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=5, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                initializer_range=0.2,
            )
        )  # fmt: skip
        with torch.no_grad():
            logits = model.double()(torch.cat([torch.tensor([[0, 3]]).expand(625, 2), sequences], 1)).logits[:, 1:-1]
            found.append(logits.log_softmax(-1).gather(2, sequences[:, :, None])[:, :, 0].numpy())
    return found[0], found[1]


def test_kl_from_samples_is_the_exact_sum(toy: tuple[np.ndarray, np.ndarray]) -> None:
    """Its intervals of 95 % hold the sum over all sequences as often as they say, and k3 is the nearer one."""
    policy, reference = toy
    chances = np.exp(policy.sum(1))
    assert chances.sum() == pytest.approx(1)
    exact = float(chances @ (policy - reference).sum(1))
    assert exact > 0.1
    chance, held, widths = np.random.default_rng(6), {"kl": 0, "kl_k3": 0}, {"kl": 0.0, "kl_k3": 0.0}
    for _ in range(100):
        drawn = chance.choice(625, 400, p=chances / chances.sum())
        for name, found in kl(list(policy[drawn]), list(reference[drawn]), np.arange(400)).items():
            held[name] += found.low <= exact <= found.high
            widths[name] += found.high - found.low
    assert min(held.values()) >= 86  # of 95; four standard deviations
    assert widths["kl_k3"] < widths["kl"]
    whole = kl(list(policy), list(policy), np.arange(625))
    assert whole["kl"] == whole["kl_k3"] == (0, 0, 0)


def test_several_figures_are_of_the_same_resamples() -> None:
    values = np.random.default_rng(7).normal(size=50)
    first, second = bootstrap(lambda weights: np.stack([weights @ values, -weights @ values], 1), np.arange(50))
    assert (first.low, first.high) == (pytest.approx(-second.high), pytest.approx(-second.low))
