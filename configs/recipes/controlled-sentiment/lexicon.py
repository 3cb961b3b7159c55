"""The reward of vader.yaml: how positive a text sounds."""

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_analyzer = SentimentIntensityAnalyzer()


def compound(prompt: str, completion: str) -> float:  # noqa: ARG001
    """VADER's score, from -1 to 1, of what was written; the prompts are neutral."""
    return float(_analyzer.polarity_scores(completion)["compound"])
