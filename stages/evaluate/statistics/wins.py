"""How often the policy's answer is the better one."""

import numpy as np

from stages.evaluate.statistics.bootstrap import Estimate, bootstrap, means

_RIDGE = 0.01  # on both coefficients: that of a normal prior of deviation 10
_STEPS = 50  # of Newton's method, at most


def of_rewards(policy: np.ndarray, reference: np.ndarray, tie: float = 0.0) -> np.ndarray:
    """Outcomes [n]: 1 where the policy's reward is greater by more than `tie`, 0 where it is less, 1/2 between."""
    difference = policy - reference
    outcomes: np.ndarray = (np.where(np.abs(difference) <= tie, 0, np.sign(difference)) + 1) / 2
    return outcomes


def of_orders(policy_first: np.ndarray, policy_second: np.ndarray) -> np.ndarray:
    """Outcomes [n] of a judge that was asked twice: its preference for the policy's answer as it stood first, and as it
    stood second, each from 0 to 1. Their mean: a judge that goes by the place alone says 1/2.
    """
    return (policy_first + policy_second) / 2


def win_rate(outcomes: np.ndarray, clusters: np.ndarray) -> Estimate:
    """The mean outcome: ties are half a win."""
    return means({"wins": outcomes}, clusters)["wins"]


def length_controlled(outcomes: np.ndarray, longer_by: np.ndarray, clusters: np.ndarray) -> Estimate:
    """The win rate, were both answers of one length.

    `longer_by` [n]: tokens that the policy's answer has more. As in AlpacaEval 2 (Dubois et al. 2024, 2404.04475,
    section 3.2) a logistic regression explains the outcome by which model wrote and by tanh of the difference in
    length over its standard deviation, and is then asked for a difference of 0. Its third term, how hard an
    instruction is, is fitted over many models, and left out here, where there are two.
    """
    deviation = float(np.std(longer_by))
    length = np.tanh(longer_by / deviation) if deviation else np.zeros(len(longer_by))
    rows = np.stack([np.ones(len(length)), length], 1)

    def rate(weights: np.ndarray) -> np.ndarray:
        found: np.ndarray = 1 / (1 + np.exp(-_fit(rows, outcomes, weights)[:, 0]))
        return found

    return bootstrap(rate, clusters)[0]


def _fit(rows: np.ndarray, outcomes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Logistic regression of outcomes [n], from 0 to 1, on rows [n, 2] under each of weights [r, n] -> [r, 2]."""
    found = np.zeros((len(weights), rows.shape[1]))
    products = rows[:, :, None] * rows[:, None, :]
    for _ in range(_STEPS):
        chances = 1 / (1 + np.exp(-found @ rows.T))
        slopes = (weights * (outcomes - chances)) @ rows - _RIDGE * found
        curvature = np.einsum("rn,nij->rij", weights * chances * (1 - chances), products)
        step = np.linalg.solve(curvature + _RIDGE * np.eye(rows.shape[1]), slopes[:, :, None])[:, :, 0]
        found += step / np.maximum(
            1, np.linalg.norm(step, axis=1, keepdims=True)
        )  # far from the solution: in its direction
        if np.abs(step).max() < 1e-8:
            break
    return found
