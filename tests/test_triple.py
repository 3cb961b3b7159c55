"""Rows of every shape, and rows of none."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import RecipeError
from stages.shard.config import Columns, Shape
from stages.shard.shapes.tell import tell
from stages.shard.triple import Labelled, Malformed, Rejected, Triple, outcomes, parse

COLUMNS = Columns()
QUESTION, GOOD, BAD = ({"role": role, "content": text} for role, text in zip("uaa", ("Hi?", "Yes", "No"), strict=True))


def read(shape: Shape, **row: Any) -> Triple | Labelled:
    assert tell([json.dumps(row)], COLUMNS, "set").shape == shape
    (made,) = parse(json.dumps(row), shape, COLUMNS)
    return made


def test_explicit() -> None:
    assert read("explicit", prompt="a", chosen="b", rejected="c") == Triple("a", "b", "c")


def test_labelled() -> None:
    assert read("labelled", prompt="a", completion="b", label=False) == Labelled("a", "b", False)
    expected = Labelled([QUESTION], [GOOD], True)
    assert read("labelled", prompt=[QUESTION], completion=[GOOD], label=1) == expected
    assert read("labelled", prompt="Hi?", completion=[GOOD], label=True) == Labelled(
        [QUESTION | {"role": "user"}], [GOOD], True
    )
    assert Triple("a", "b", "c").unrolled() == [Labelled("a", "b", True), Labelled("a", "c", False)]


def test_a_margin_is_a_number() -> None:
    columns = Columns(margin="better")
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert parse(json.dumps(row | {"better": 2}), "explicit", columns) == [Triple("a", "b", "c", 2.0)]
    assert parse(row | {"better": "2"}, "explicit", columns) == [Triple("a", "b", "c", 2.0)]  # as CSV has it
    for wrong in ("much", None, True, float("nan")):
        with pytest.raises(Malformed, match=r"column 'better' is .*, not a finite number"):
            parse(json.dumps(row | {"better": wrong}), "explicit", columns)
    with pytest.raises(RecipeError, match="has no column 'better'"):
        tell([json.dumps(row)], columns, "set")
    between = Columns(margin="good - bad")
    assert parse(row | {"good": 3, "bad": 1.5}, "explicit", between) == [Triple("a", "b", "c", 1.5)]
    with pytest.raises(RecipeError, match="has no column 'bad'"):
        tell([json.dumps(row | {"good": 3})], between, "set")


def test_a_negative_margin_is_refused_or_swaps_the_two() -> None:
    row, columns = {"prompt": "a", "chosen": "b", "rejected": "c", "strength": -3}, Columns(margin="strength")
    with pytest.raises(Rejected, match=r"margin: column 'strength' is -3: .* Set shard\.negative_margin: swap"):
        parse(row, "explicit", columns)
    assert parse(row, "explicit", columns, negative_margin="swap") == [Triple("a", "c", "b", 3.0)]
    assert parse(row | {"strength": 0}, "explicit", columns) == [Triple("a", "b", "c", 0.0)]


def test_a_row_says_which_completions_were_cut() -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_finish": "length", "rejected_finish": "stop"}
    (triple,) = parse(row, "explicit", COLUMNS)
    assert triple == Triple("a", "b", "c", chosen_cut=True)
    assert [each.cut for each in triple.unrolled()] == [True, False]
    (swapped,) = parse(row | {"m": -1}, "explicit", Columns(margin="m"), negative_margin="swap")
    assert swapped == Triple("a", "c", "b", 1.0, rejected_cut=True)
    messages = row | {"prompt": [QUESTION], "chosen": [GOOD], "rejected": [BAD], "rejected_finish": None}
    assert parse(messages, "conversational", COLUMNS) == [Triple([QUESTION], [GOOD], [BAD], chosen_cut=True)]
    labelled = {"prompt": "a", "completion": "b", "label": True, "finish_reason": "MAX_TOKENS"}
    assert parse(labelled, "labelled", COLUMNS) == [Labelled("a", "b", True, cut=True)]
    answers = [{"text": "b", "score": 2, "finish_reason": "stop"}, {"text": "c", "score": 1, "finish_reason": "length"}]
    (ranked,) = parse({"prompt": "a", "completions": answers}, "ranked", COLUMNS, text="plain")
    assert ranked == Triple("a", "b", "c", 1.0, rejected_cut=True)
    odd = {"text": "d", "score": 3, "finish_reason": 5}
    with_odd = outcomes({"prompt": "a", "completions": [*answers, odd]}, "ranked", COLUMNS)
    assert [str(each) for each in with_odd if isinstance(each, Rejected)] == [
        "'finish_reason' of completion 2 is 5, and says no word as stop or length of how a completion ended"
    ]
    with pytest.raises(Malformed, match=r"column 'chosen_finish' is 5, and says no word as stop or length"):
        parse(row | {"chosen_finish": 5}, "explicit", COLUMNS)
    assert parse(row, "explicit", Columns(chosen_finish="end")) == [Triple("a", "b", "c")]
    with pytest.raises(RecipeError, match="has no column 'end'"):
        tell([json.dumps(row)], Columns(chosen_finish="end"), "set")


def test_a_weight_is_a_number_and_stays_when_unrolled() -> None:
    row, columns = {"prompt": "a", "chosen": "b", "rejected": "c", "w": 0.5}, Columns(weight="w")
    (triple,) = parse(row, "explicit", columns)
    assert triple == Triple("a", "b", "c", weight=0.5)
    assert outcomes(row | {"rejected": "b"}, "explicit", columns, unrolled=True) == [Triple("a", "b", "b", weight=0.5)]
    assert (
        outcomes(row, "explicit", columns, unrolled=True)
        == triple.unrolled()
        == [Labelled("a", "b", True, 0.5), Labelled("a", "c", False, 0.5)]
    )
    with pytest.raises(Malformed, match="column 'w' is -1, and no pair has a weight below 0"):
        parse(row | {"w": -1}, "explicit", columns)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": "b", "label": "good"}, "column 'label' is 'good', not true or false"),
        ({"prompt": "a", "completion": "b", "label": "True"}, "column 'label' is 'True', not true or false"),
        ({"prompt": "a", "completion": "b", "label": -1}, "column 'label' is -1, not true or false"),
        ({"prompt": "a", "completion": [1], "label": True}, "not a list of messages"),
    ],
)
def test_what_is_no_labelled_completion(row: dict, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        parse(json.dumps(row), "labelled", COLUMNS)


def test_conversational() -> None:
    expected = Triple([QUESTION], [GOOD], [BAD])
    assert read("conversational", prompt=[QUESTION], chosen=[GOOD], rejected=[BAD]) == expected
    # Each side may hold the whole dialogue (UltraFeedback does), and the prompt may be the user's bare words.
    assert read("conversational", prompt=[QUESTION], chosen=[QUESTION, GOOD], rejected=[QUESTION, BAD]) == expected
    user = {"role": "user", "content": "Hi?"}
    assert read("conversational", prompt="Hi?", chosen=[user, GOOD], rejected=[user, BAD]) == Triple(
        [user], [GOOD], [BAD]
    )


def test_implicit_messages() -> None:
    triple = read("implicit", chosen=[QUESTION, GOOD], rejected=[QUESTION, BAD])
    assert triple == Triple([QUESTION], [GOOD], [BAD])


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: hi A: apple", "Q: hi A: apricot", "Q: hi A:"),  # no completion begins inside a word
        ("foo abc", "foo abc def", "foo"),  # none is empty either
        ("one", "two", ""),
    ],
)
def test_implicit_text(chosen: str, rejected: str, prompt: str) -> None:
    triple = read("implicit", chosen=chosen, rejected=rejected)
    assert triple == Triple(prompt, chosen.removeprefix(prompt), rejected.removeprefix(prompt))


@given(st.text(" ab", max_size=12), st.text(" ab", max_size=12))
def test_implicit_text_loses_nothing(chosen: str, rejected: str) -> None:
    (triple,) = parse({"chosen": chosen, "rejected": rejected}, "implicit", COLUMNS)
    assert isinstance(triple, Triple)
    assert triple.prompt + triple.chosen == chosen
    assert triple.prompt + triple.rejected == rejected


def test_hh_transcript() -> None:
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert read("hh", chosen=start + " d", rejected=start + " e") == Triple(start, " d", " e")


@pytest.mark.parametrize(
    ("shape", "text", "message"),
    [
        ("explicit", "{", "not JSON"),
        ("explicit", "[1]", "not a JSON object but a list"),
        ("explicit", '{"chosen": "a", "rejected": "b"}', "no value in column 'prompt'"),
        ("explicit", '{"prompt": "a", "chosen": 3, "rejected": "b"}', "column 'chosen' is a int"),
        ("explicit", '{"prompt": "a", "chosen": ["b"], "rejected": "c"}', "chosen is a list, rejected is a str"),
        ("conversational", '{"prompt": "a", "chosen": ["b"], "rejected": ["c"]}', "not a list of messages"),
        ("hh", '{"chosen": "\\n\\nHuman: a", "rejected": "b"}', "no '\\n\\nAssistant:' in the chosen"),
        ("hh", '{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b", "rejected": "c"}', "the transcripts part before"),
    ],
)
def test_malformed_rows_say_why(shape: Shape, text: str, message: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse(text, shape, COLUMNS)
    assert message.encode().decode("unicode_escape") in str(caught.value).encode().decode("unicode_escape")


def test_a_missing_column_names_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"no column 'chosen'; it has 'better', 'worse'.*shard\.columns"):
        tell(['{"better": "a", "worse": "b"}'], COLUMNS, "set")
