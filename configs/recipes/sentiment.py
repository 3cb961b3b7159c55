"""The demo's judge: how positive a text sounds."""

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_analyzer = SentimentIntensityAnalyzer()


def compound(prompt: str, completion: str) -> float:  # noqa: ARG001
    """VADER's score, from -1 to 1: that by which infra/demo/make_triples.py has labelled the demo's triples."""
    return float(_analyzer.polarity_scores(completion)["compound"])
