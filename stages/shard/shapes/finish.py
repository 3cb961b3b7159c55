"""How the sampling of a completion ended, as rows that models wrote say it."""

from dataclasses import replace
from typing import Any

from stages.shard.config import Columns
from stages.shard.shapes.row import Labelled, Malformed, Triple

# vLLM's, OpenAI's and TGI's; Anthropic's and Gemini's; Mistral's; what a provider's filter stopped; vLLM's again.
CUT = frozenset({"length", "max_tokens", "model_length", "content_filter", "abort"})


def with_finish(made: Triple | Labelled, row: dict[str, Any], columns: Columns) -> Triple | Labelled:
    """With what the row says of its completions. Raises Malformed."""
    if isinstance(made, Labelled):
        return replace(made, cut=True) if _of_column(row, columns.finish) else made
    cut = [_of_column(row, name) for name in (columns.chosen_finish, columns.rejected_finish)]
    return replace(made, chosen_cut=cut[0], rejected_cut=cut[1]) if any(cut) else made


def was_cut(finish: Any, name: str) -> bool:
    """Whether it says that a model was stopped before it came to an end. Raises Malformed where it is no text."""
    if finish is None:
        return False
    if not isinstance(finish, str):
        raise Malformed(f"{name} is {finish!r:.80}, and says no word as stop or length of how a completion ended")
    return finish.lower() in CUT


def _of_column(row: dict[str, Any], name: str) -> bool:
    return was_cut(row.get(name), f"column {name!r}")
