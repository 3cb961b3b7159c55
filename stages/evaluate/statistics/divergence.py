"""How far the policy has gone from the reference, by what it writes."""

from collections.abc import Sequence

import numpy as np

from stages.evaluate.statistics.bootstrap import Estimate, bootstrap, means

Tokens = Sequence[np.ndarray]  # of each sequence the log-probs of its tokens, nats


def kl(policy: Tokens, reference: Tokens, clusters: np.ndarray) -> dict[str, Estimate]:
    """KL(policy || reference) of a whole sequence, nats, from sequences that the policy wrote, scored by both models.

    They have to be samples of the policy itself: temperature 1, all tokens. Sequences cut at n tokens give the KL of
    the first n. `kl`: the mean of log(policy / reference), the sum over a sequence. `kl_k3`: the mean of the sum over
    tokens of r - 1 - log r, r = reference / policy there (Schulman, 2020, http://joschu.net/blog/kl-approx.html): of
    the same expectation, token by token, never below 0 and of less variance where the two are near each other.
    """
    ratios = [np.asarray(ours, np.float64) - theirs for ours, theirs in zip(policy, reference, strict=True)]
    plain = np.array([ratio.sum() for ratio in ratios])
    low_variance = np.array([(np.expm1(-ratio) + ratio).sum() for ratio in ratios])
    return means({"kl": plain, "kl_k3": low_variance}, clusters)


def perplexity(logps: np.ndarray, lengths: np.ndarray, clusters: np.ndarray) -> Estimate:
    """exp of the mean negative log-prob of a token, over all tokens of the sequences: sums [n] nats, and tokens [n]."""

    def of(weights: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.exp(-(weights @ logps) / (weights @ lengths))
        return found

    return bootstrap(of, clusters)[0]
