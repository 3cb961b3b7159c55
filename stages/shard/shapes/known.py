"""What well-known sets call their columns, for rows whose recipe names none."""

from dataclasses import dataclass
from typing import Any, Literal

from stages.shard.config import Columns

PROMPTS = ("instruction", "context", "history", "question", "query", "conversations", "messages")
COMPLETIONS = ("completions", "answers", "responses", "candidates", "generations")
TEXTS = ("response", "answer", "completion", "text", "content", "output", "generated_text")  # of one candidate
SCORES = ("overall_score", "scores", "score", "rewards", "reward", "ratings", "rating")
RANKS = ("ranks", "rank", "rankings", "ranking")
LABELS = ("kto_tag",)

Verdict = Literal["signed", "first_is_1", "index", "winner"]


@dataclass(frozen=True)
class Compared:
    """Two completions side by side and a verdict. `signed`: negative where the first is better."""

    first: str
    second: str
    preference: str
    verdict: Verdict
    scores: tuple[str, str] | None = None  # of the first and the second, for the margin


COMPARED = (
    Compared("response1", "response2", "overall_preference", "signed"),  # HelpSteer 3
    Compared("response_1", "response_2", "preference_strength", "signed"),  # HelpSteer 2, preferences
    Compared("human_ref_A", "human_ref_B", "labels", "first_is_1", ("score_A", "score_B")),  # SHP
    Compared("response_0", "response_1", "better_response_id", "index"),  # PKU-SafeRLHF
    Compared("conversation_a", "conversation_b", "winner", "winner"),  # Chatbot Arena
    Compared("response_a", "response_b", "winner", "winner"),
    Compared("response_a", "response_b", "preference", "winner"),
)


def in_our_words(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """A row of OpenAI's preference files, whose prompt and tools lie in `input`; any other as it is."""
    asked, sides = row.get("input"), ("preferred_output", "non_preferred_output")
    if not isinstance(asked, dict) or not row.keys() >= set(sides) or columns != Columns():
        return row
    chosen, rejected = (row[side] for side in sides)
    named = {"prompt": asked.get("messages"), "tools": asked.get("tools"), "chosen": chosen, "rejected": rejected}
    return {key: value for key, value in row.items() if key not in ("input", *sides)} | named


def prompt_column(row: dict[str, Any], columns: Columns, known: tuple[str, ...] = ("conversations",)) -> str:
    """The recipe's, or the first of the known ones that is there; the recipe's again where none is."""
    if columns.prompt in row or columns.prompt != Columns().prompt:
        return columns.prompt
    return next((name for name in known if name in row), columns.prompt)


def compared_of(row: dict[str, Any], columns: Columns) -> Compared | None:
    """The two completions and the verdict of a row; as the recipe names them, or known ones."""
    if columns.first and columns.second and columns.preference:
        found = Compared(columns.first, columns.second, columns.preference, "signed")
        return found if _has(row, found) else None
    if columns.chosen in row and columns.rejected in row:
        sides = {columns.chosen, columns.rejected}
        return next((each for each in COMPARED if sides == {each.first, each.second} and _has(row, each)), None)
    return next((each for each in COMPARED if _has(row, each)), None)


def _has(row: dict[str, Any], known: Compared) -> bool:
    return {known.first, known.second, known.preference} <= row.keys()


def completions_column(row: dict[str, Any], columns: Columns) -> str | None:
    wanted = [columns.completions] if columns.completions else COMPLETIONS
    return next((name for name in wanted if isinstance(row.get(name), list | str)), None)


def label_columns(row: dict[str, Any], columns: Columns) -> tuple[str, str]:
    """(completion, label). A whole dialogue may stand in `messages` or `conversations` instead of a completion."""
    completion, label = columns.completion, columns.label
    if completion not in row and completion == Columns().completion:
        completion = next((name for name in ("messages", "conversations") if name in row), completion)
    if label not in row and label == Columns().label:
        label = next((name for name in LABELS if name in row), label)
    return completion, label
