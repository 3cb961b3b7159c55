"""How rows of the world become triples: the READMEs' examples, what public sets and reports look like, and any JSON."""

import json
import pickle
from collections import Counter
from typing import Any

import fuzz_rows
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_readme import blocks

from stages.errors import RecipeError
from stages.shard.config import Chat, Columns, ShardConfig
from stages.shard.shapes.tell import tell, tell_source
from stages.shard.triple import Labelled, Malformed, Rejected, Triple, outcomes, parse

COLUMNS = Columns()
EXAMPLES = [block for block in blocks(ROOT / "stages/shard/shapes/README.md") if block.language == "jsonl"]


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text} | more


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | more


SYSTEM = {"role": "system", "content": "Be brief."}
ASKED, GOOD, BAD = user("When does the ferry leave?"), answer("At noon."), answer("No idea.")


def made(rows: list[dict[str, Any]], columns: Columns = COLUMNS, **how: Any) -> list[Any]:
    """All that comes of a set, of the shape that is told of it."""
    texts = [json.dumps(row) for row in rows]
    shape = tell(texts, columns, "set").shape
    return [each for text in texts for each in outcomes(text, shape, columns, **how)]


def one(columns: Columns = COLUMNS, **row: Any) -> Any:
    (found,) = made([row], columns)
    return found


def said(text: Any) -> str:
    return text if isinstance(text, str) else " ".join(str(message["content"]) for message in text)


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.heading for example in EXAMPLES])
def test_examples_of_the_readme(example: Any) -> None:
    rows = example.text.splitlines()
    shape = example.heading.split(",")[0]
    assert len(rows) == 5
    told = tell(rows, COLUMNS, "set")
    assert (told.shape, told.row) == (shape, 0)
    for row in rows:
        (found,) = parse(row, told.shape, COLUMNS)
        if isinstance(found, Labelled):
            assert found.label is ("No idea" not in said(found.completion))
            continue
        assert isinstance(found, Triple)
        assert "No idea" in said(found.rejected)
        assert "No idea" not in said(found.chosen)
        assert said(found.prompt).strip().endswith(("?", "water", "Assistant:"))
        kinds = {type(each) for each in (found.prompt, found.chosen, found.rejected)}
        assert kinds == ({list} if told.of_messages else {str})
        assert (
            (found.margin is not None and found.margin > 0)
            or shape not in ("ranked", "compared")
            or ("better_response_id" in row or "winner" in row)
        )


# --- which shape ---------------------------------------------------------------------------------------------------


def test_a_null_in_the_first_row_has_no_say() -> None:
    rows: list[dict[str, Any]] = [{"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]} for _ in range(4)]
    for name in ("prompt", "chosen", "rejected"):
        found = made([{**rows[0], name: None}, *rows])
        assert [type(each) for each in found] == [Malformed] + [Triple] * 4
        assert str(found[0]) == f"no value in column {name!r}"


def test_most_rows_decide_and_a_notice_says_so() -> None:
    rows: list[dict[str, Any]] = [{"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]} for _ in range(4)]
    mixed = [{"prompt": "Q:", "chosen": " a", "rejected": " b"}, *rows]
    told = tell([json.dumps(row) for row in mixed], COLUMNS, "mixed.jsonl")
    assert (told.shape, told.of_messages, told.row) == ("conversational", True, 1)
    (notice,) = told.notices
    assert notice.startswith("mixed.jsonl: the shape is conversational, as of 4 of the first 5 rows (the first: row 1)")
    assert [type(each) for each in made(mixed)] == [Malformed] + [Triple] * 4


def test_a_column_of_nulls_is_none() -> None:
    assert tell(['{"prompt": null, "chosen": "Q: a", "rejected": "Q: b"}'], COLUMNS, "set").shape == "implicit"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": 1, "b": "x"}, "set has no column 'chosen'; it has 'a', 'b', by its row 0.*shapes there are: prompt"),
        ({"chosen": 1, "rejected": 2}, r"rows of no known shape; its row 0 has 'chosen' \(int\), 'rejected' \(int\)"),
        (
            {"question": "q", "chosen": "a", "rejected": "b"},
            r"'question' is perhaps the prompt.*shard\.columns: \{prompt: question\}",
        ),
        (
            {"prompt": "q", "response": "a", "helpfulness": 3},
            "one scored response a row.*Of HelpSteer 2, take its pref",
        ),
        ({"context": "q", "completions": ["a", "b"]}, "no column 'chosen'; it has 'context', 'completions'"),
    ],
)
def test_where_nothing_fits_one_message_says_what_there_is(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tell([json.dumps(row)], COLUMNS, "set")


def test_columns_for_the_template_that_are_not_there_are_told() -> None:
    row = json.dumps({"prompt": "p", "chosen": "a ", "rejected": "b ", "functions": []})
    for chat, told in (({}, 0), ({"tools_column": "functions"}, 0), ({"tools_column": "x", "kwargs_column": "y"}, 2)):
        config = ShardConfig(source="set", tokenizer="t", chat=Chat(**chat))
        notices = [note for note in tell_source([row], config.all_sources[0], config).notices if "shard.chat" in note]
        assert len(notices) == told
    assert notices[1] == "set: none of the first 1 rows has the column 'x' of shard.chat.tools_column"


def test_a_prompt_that_the_recipe_names_is_not_done_without() -> None:
    """Else it would be looked for in the completions, and what the set calls its prompt would be lost in silence."""
    row = {"prompt": "Is it so?", "chosen": "It is so.", "rejected": "It is not."}
    with pytest.raises(RecipeError, match="set has no column 'promt'; it has 'prompt', 'chosen', 'rejected'"):
        tell([json.dumps(row)], Columns(prompt="promt"), "set")


@pytest.mark.parametrize(("row", "message"), [("{", "first row of set is not JSON"), ("[1]", "is a list, not a JSON")])
def test_rows_that_are_no_objects(row: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tell([row], COLUMNS, "set")
    with pytest.raises(RecipeError, match="has no rows"):
        tell([], COLUMNS, "set")


def test_plain_text_without_a_blank_is_told() -> None:
    row = {"prompt": "When does it leave?", "chosen": "At noon.", "rejected": "No idea."}
    (notice,) = tell([json.dumps(row)], COLUMNS, "set").notices
    assert "without a blank between" in notice
    told = tell([json.dumps(row)], COLUMNS, "set", text="chat")
    assert (told.of_messages, told.notices) == (True, [])
    assert outcomes(row, "explicit", COLUMNS, text="chat") == [
        Triple([user("When does it leave?")], [answer("At noon.")], [answer("No idea.")])
    ]
    for better in ({"prompt": "Q: when?\nA:", "chosen": " At noon."}, {"chosen": row["prompt"] + " At noon."}):
        joined = row | {"rejected": better["chosen"] + " Or not."} | better
        assert tell([json.dumps(joined)], COLUMNS, "set").notices == []


# --- messages ------------------------------------------------------------------------------------------------------


def test_messages_as_json_text() -> None:
    row = {name: json.dumps([each]) for name, each in (("prompt", ASKED), ("chosen", GOOD), ("rejected", BAD))}
    assert one(**row) == Triple([ASKED], [GOOD], [BAD])
    told = tell([json.dumps(row)], COLUMNS, "set", "explicit")
    assert "messages as JSON text, trained on as text" in told.notices[0]
    assert outcomes(row, "explicit", COLUMNS) == [Triple(row["prompt"], row["chosen"], row["rejected"])]


def test_parts_of_text_are_joined_and_others_named() -> None:
    parts = [{"type": "text", "text": "When does "}, {"type": "text", "text": "the ferry leave?"}]
    assert one(prompt=[user("") | {"content": parts}], chosen=[GOOD], rejected=[BAD]).prompt == [ASKED]
    for part, kind in (
        ({"type": "image"}, "an image part"),
        ({"type": "image_url", "image_url": {"url": "u"}}, "an image part"),
        ({"type": "input_audio"}, "an audio part"),
        ({"type": "video"}, "a video part"),
        ({"type": "tool_use"}, "a part of type 'tool_use'"),
    ):
        found = one(prompt=[user("") | {"content": [part, *parts]}], chosen=[GOOD], rejected=[BAD])
        assert (found.reason, found.detail) == (
            "unsupported",
            f"a message of prompt has {kind}, and only text is trained on",
        )
    found = one(images=["a.png"], prompt=[ASKED], chosen=[GOOD], rejected=[BAD])
    assert found.reason == "unsupported"


def test_sharegpt_speakers() -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "When?"},
        {"from": "function_call", "value": '{"name": "ferry", "arguments": {"day": "monday"}}'},
        {"from": "observation", "value": "noon"},
    ]
    found = one(
        conversations=turns, chosen={"from": "gpt", "value": "At noon."}, rejected=[{"from": "gpt", "value": "-"}]
    )
    calls = [{"type": "function", "function": {"name": "ferry", "arguments": {"day": "monday"}}}]
    assert found.prompt == [
        SYSTEM,
        user("When?"),
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "noon"},
    ]
    assert (found.chosen, found.rejected) == ([GOOD], [answer("-")])
    odd = one(conversations=[{"from": "narrator", "value": "x"}], chosen=turns[1], rejected=turns[1])
    assert "is from 'narrator', none of human, user, gpt" in odd.detail


def test_tools_are_kept_and_nulls_taken_out() -> None:
    schema = {
        "type": "function",
        "function": {"name": "ferry", "parameters": {"day": {"type": "string", "enum": None}}},
    }
    clean = {"type": "function", "function": {"name": "ferry", "parameters": {"day": {"type": "string"}}}}
    call = {"id": "1", "type": "function", "function": {"name": "ferry", "arguments": {"day": "monday", "port": None}}}
    chosen = {"role": "assistant", "content": None, "tool_calls": [call], "name": None}
    row = {"prompt": [ASKED], "chosen": [chosen], "rejected": [BAD]}
    for tools in ([schema], json.dumps([schema]), [json.dumps(schema)]):
        found = one(**row, tools=tools)
        assert found.tools == [clean]
        (message,) = found.chosen
        assert message["tool_calls"][0]["function"]["arguments"] == {"day": "monday"}
        assert (message["content"], "name" in message) == (None, False)
    for none in (None, "", [], " "):
        assert one(**row, tools=none).tools is None
    assert "column 'tools' is text, but not JSON" in one(**row, tools="a hammer").detail
    assert outcomes(row | {"tools": "a hammer"}, "conversational", COLUMNS, tools_column=None)[0].tools is None
    (found,) = outcomes(row | {"k": '{"thinking": false}'}, "conversational", COLUMNS, kwargs_column="k")
    assert found.chat_kwargs == {"thinking": False}
    assert "column 'k' is a list" in str(outcomes(row | {"k": [1]}, "conversational", COLUMNS, kwargs_column="k")[0])
    silent = one(prompt=[ASKED], chosen=[{"role": "assistant"}], rejected=[BAD])
    assert "neither content nor tool_calls" in silent.detail


def test_a_system_column() -> None:
    columns = Columns(prompt="question", system="system")
    row = {"system": "Be brief.", "question": ASKED["content"], "chosen": "At noon.", "rejected": "No idea."}
    assert one(columns, **row) == Triple([SYSTEM, ASKED], [GOOD], [BAD])
    assert one(columns, **row | {"system": ""}) == Triple([ASKED], [GOOD], [BAD])
    assert tell([json.dumps(row)], columns, "set").of_messages


# --- what completions repeat ---------------------------------------------------------------------------------------

REPEATED = Triple([ASKED], [GOOD], [BAD])
BEFORE = [user("Hello."), answer("Hello, what is it?")]


@pytest.mark.parametrize(
    ("prompt", "start", "expected"),
    [
        ([ASKED], [ASKED], [ASKED]),
        ([ASKED], [ASKED | {"name": None}], [ASKED]),
        ([ASKED], [ASKED | {"name": "Ann"}], [ASKED]),
        ([user(ASKED["content"] + " \n")], [ASKED], [user(ASKED["content"] + " \n")]),
        (ASKED["content"] + " ", [ASKED], [ASKED]),
        (ASKED["content"], [SYSTEM, ASKED], [SYSTEM, ASKED]),
        ([ASKED], [SYSTEM, ASKED], [SYSTEM, ASKED]),
        ([ASKED], [SYSTEM], [SYSTEM, ASKED]),
        ([SYSTEM, ASKED], [ASKED], [SYSTEM, ASKED]),
        ([SYSTEM, ASKED], [SYSTEM, ASKED], [SYSTEM, ASKED]),
        ([SYSTEM, *BEFORE, ASKED], [*BEFORE, ASKED], [SYSTEM, *BEFORE, ASKED]),
        ([ASKED], [*BEFORE, ASKED], [*BEFORE, ASKED]),
        ("Hello.", [*BEFORE, ASKED], [*BEFORE, ASKED]),  # UltraFeedback: the prompt is the first turn
        (ASKED["content"], [SYSTEM, *BEFORE, ASKED], [SYSTEM, *BEFORE, ASKED]),  # or the last
    ],
)
def test_whole_dialogues_are_taken_apart(prompt: Any, start: list[dict[str, Any]], expected: Any) -> None:
    found = one(prompt=prompt, chosen=[*start, GOOD], rejected=[*start, BAD])
    assert found == Triple(expected, [GOOD], [BAD])
    labelled = one(prompt=prompt, completion=[*start, GOOD], label=True)
    assert labelled == Labelled(expected, [GOOD], True)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "reason", "detail"),
    [
        ([ASKED], [ASKED, GOOD], [BAD], "doubled_content", "chosen repeats 1 messages of the prompt, rejected 0"),
        ([ASKED], [GOOD], [ASKED, BAD], "doubled_content", "rejected repeats 1"),
        ([ASKED], [user("When?"), GOOD], [user("When?"), BAD], "doubled_content", "not the prompt's last one"),
        ([ASKED], [], [BAD], "empty", "chosen has no messages"),
        ([ASKED], [ASKED], [ASKED], "doubled_content", "nothing but messages of the prompt"),
        ([ASKED], [SYSTEM, GOOD], [BAD], "malformed", "system messages that open chosen and rejected differ"),
        ([user("x") | {"role": "system"}, ASKED], [SYSTEM, GOOD], [SYSTEM, BAD], "malformed", "is not the prompt's"),
        (
            "What is it for?",
            "What is it for? Tea.",
            "Soup.",
            "doubled_content",
            "chosen repeats the prompt, and rejected",
        ),
        ("Hello", "Hello, you.", "Hello there.", "doubled_content", "perhaps a repeat"),
    ],
)
def test_what_is_not_certain_is_set_aside(prompt: Any, chosen: Any, rejected: Any, reason: str, detail: str) -> None:
    found = one(prompt=prompt, chosen=chosen, rejected=rejected)
    assert isinstance(found, Rejected)
    assert found.reason == reason
    assert detail in found.detail


@pytest.mark.parametrize(
    ("prompt", "before", "expected"),
    [
        ("What is it?\nAnswer:", "What is it?\nAnswer:", "What is it?\nAnswer:"),
        ("What is it?\nAnswer:\n", "What is it?\nAnswer:", "What is it?\nAnswer:"),
        ("\nWhat is it?\nAnswer:", "What is it?\nAnswer:", "\nWhat is it?\nAnswer:"),
        ("什么是黑麦面包,它好吃吗,请告诉我?", "什么是黑麦面包,它好吃吗,请告诉我?", "什么是黑麦面包,它好吃吗,请告诉我?"),
    ],
)
def test_plain_text_that_repeats_the_prompt(prompt: str, before: str, expected: str) -> None:
    found = one(prompt=prompt, chosen=before + " tea", rejected=before + " soup")
    assert found == Triple(expected, " tea", " soup")
    assert one(prompt=prompt, completion=before + " tea", label=0) == Labelled(expected, " tea", False)


def test_what_only_looks_like_a_repeat_stays() -> None:
    row = {"prompt": "Hello", "chosen": "Hello! How are you?", "rejected": "What?"}
    assert one(**row) == Triple(*row.values())
    row = {"prompt": "I go to a", "chosen": "I go to apple farms", "rejected": "I go to auctions"}  # inside a word
    assert one(**row) == Triple(*row.values())


def test_an_answer_that_is_begun() -> None:
    begun = answer("Sure, my short answer is:")
    rows = [
        {"prompt": [ASKED, begun], "chosen": [answer(" noon.")], "rejected": [answer(" no idea.")]},
        {
            "prompt": [ASKED, begun],
            "chosen": [answer(begun["content"] + " noon.")],
            "rejected": [answer(begun["content"] + " no idea.")],
        },
    ]
    expected = Triple([ASKED, begun], [answer(" noon.")], [answer(" no idea.")])
    assert made(rows) == [expected, expected]


TURNS = st.lists(st.text("ab ", min_size=1, max_size=3), min_size=1, max_size=5).map(
    lambda texts: [(user if i % 2 == 0 else answer)(f"{text}{i}") for i, text in enumerate(texts)]
)


@given(TURNS.filter(lambda turns: len(turns) % 2 == 1), st.booleans(), st.data())
def test_a_dialogue_is_the_same_however_it_is_written(turns: Any, system: bool, data: Any) -> None:
    before = [SYSTEM] * system + turns
    start = data.draw(st.sampled_from([[], before, turns, turns[-1:], [m | {"name": None} for m in before]]))
    text = start == before and data.draw(st.booleans())  # the prompt as a string: one of the user's turns
    prompt = data.draw(st.sampled_from(turns[::2]))["content"] if text else before
    if not text and start and data.draw(st.booleans()):
        prompt = [message | {"content": message["content"] + " "} for message in before]
    found = one(prompt=prompt, chosen=[*start, GOOD], rejected=[*start, BAD])
    assert (found.chosen, found.rejected) == ([GOOD], [BAD])
    assert [m["content"].strip() for m in found.prompt] == [m["content"].strip() for m in before]


# --- ranked and compared -------------------------------------------------------------------------------------------

SCORED = {"prompt": [ASKED], "completions": ["c", "a", "d", "b"], "scores": [2, 5, 1, 5.0]}


def pairs_of(pairing: Any, **row: Any) -> list[Any]:
    found = made([SCORED | row], pairing=pairing)
    return [
        each.reason if isinstance(each, Rejected) else said(each.chosen) + said(each.rejected) + f" {each.margin:g}"
        for each in found
    ]


def test_pairings() -> None:
    assert pairs_of("best_worst") == ["ad 4"]
    assert pairs_of("adjacent") == ["tie", "bc 3", "cd 1"]
    assert pairs_of("all") == ["tie", "ac 3", "ad 4", "bc 3", "bd 4", "cd 1"]
    assert pairs_of("all", scores=[1, 1, 1, 1]) == ["tie"]
    drawn = Counter(pairs_of("best_random", id=i)[0] for i in range(40))
    assert set(drawn) == {"ac 3", "ad 4"}  # never the other best one
    assert pairs_of("best_random", id=3) == pairs_of("best_random", id=3)
    ranks = {key: value for key, value in SCORED.items() if key != "scores"} | {"ranks": [2, 1, 3, 1]}
    assert [said(each.chosen) + said(each.rejected) for each in made([ranks])] == ["ad"]


def test_candidates_without_a_score_are_counted() -> None:
    assert pairs_of("best_worst", scores=[2, "N/A", 1, "5"]) == ["malformed", "bd 4"]
    assert pairs_of("best_worst", scores=["N/A", "N/A", 1, "N/A"]) == ["malformed"]
    assert "3 values in column 'scores' for 4 completions" in str(
        outcomes(SCORED | {"scores": [1, 2, 3]}, "ranked", COLUMNS)
    )


def test_the_recipe_names_scores_and_candidates() -> None:
    row = {"q": "When?", "outs": [{"text": "a", "x": 1, "score": 9}, {"text": "b", "x": 2, "score": 3}]}
    columns = Columns(prompt="q", completions="outs", scores="x")
    (found,) = made([row], columns)
    assert (said(found.chosen), said(found.rejected), found.margin) == ("b", "a", 1.0)
    (found,) = made([row], Columns(prompt="q", completions="outs", ranks="x"))
    assert (said(found.chosen), found.margin) == ("a", 1.0)


def test_the_sign_of_a_preference_is_read() -> None:
    row = {"context": [ASKED], "response1": "At noon.", "response2": "No idea."}
    first, tie, second, null = made([row | {"overall_preference": value} for value in (-3, 0, 2, None)])
    assert first == Triple([ASKED], [GOOD], [BAD], 3.0)
    assert second == Triple([ASKED], [BAD], [GOOD], 2.0)
    assert (tie.reason, null.reason) == ("tie", "malformed")

    # Where a recipe names the two as chosen and rejected, the verdict beside them still counts, and is told of.
    columns = Columns(prompt="context", chosen="response1", rejected="response2")
    told = tell([json.dumps(row | {"overall_preference": 2})], columns, "set")
    assert told.shape == "compared"
    assert "'overall_preference' says which of 'response1' and 'response2' is better" in told.notices[0]
    (found,) = outcomes(row | {"overall_preference": 2}, told.shape, columns)
    assert found == second
    assert tell([json.dumps(row)], columns, "set").shape == "conversational"

    named = Columns(prompt="context", first="response1", second="response2", preference="p")
    assert one(named, **row, p=-1) == Triple([ASKED], [GOOD], [BAD], 1.0)


def test_a_margin_that_is_the_verdict_has_lost_its_sign() -> None:
    row = {"context": [ASKED], "response1": "At noon.", "response2": "No idea.", "overall_preference": -3}
    assert one(Columns(margin="overall_preference"), **row) == Triple([ASKED], [GOOD], [BAD], 3.0)
    with pytest.raises(ValidationError, match="Give all three"):
        Columns(first="response1")


def test_a_likely_part_of_the_prompt_that_is_not_read_is_told() -> None:
    row = {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD], "system": "Be brief."}
    (notice,) = tell([json.dumps(row)], COLUMNS, "set").notices
    assert "column 'system' is not read. If it is a system message, set shard.columns: {system: system}" in notice
    assert tell([json.dumps(row)], Columns(system="system"), "set").notices == []
    alpaca = {"instruction": "Add.", "input": "1 and 2", "chosen": " 3", "rejected": " 4"}
    (notice,) = tell([json.dumps(alpaca)], Columns(prompt="instruction"), "set").notices
    assert "column 'input' is not read" in notice


def test_verdicts_of_other_kinds() -> None:
    shp = {"history": "When?", "human_ref_A": "a", "human_ref_B": "b", "score_A": 7, "score_B": 4}
    assert said(one(**shp, labels=1).chosen) == "a"
    assert one(**shp, labels=1).margin == 3
    assert one(**shp, labels=0).reason == "margin"  # the scores say otherwise
    assert "neither 0 nor 1" in one(**shp, labels=2).detail
    arena = {"conversation_a": [ASKED, GOOD], "conversation_b": [ASKED, BAD]}
    assert one(**arena, winner="model_b") == Triple([ASKED], [BAD], [GOOD])
    assert one(**arena, winner="tie (bothbad)").reason == "tie"
    told = one(**arena, winner="neither").detail
    assert "none of model_a (a, conversation_a), model_b (b, conversation_b), tie" in told


# --- any JSON ------------------------------------------------------------------------------------------------------


def test_rejections_cross_processes() -> None:
    for error in (Malformed("why"), Rejected("tie", "why")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.reason, copy.detail, str(copy)) == (type(error), error.reason, "why", str(error))


@settings(max_examples=300, deadline=None)
@given(fuzz_rows.ROWS)
def test_any_row_is_read_or_set_aside(row: str) -> None:
    fuzz_rows.check(row)


def test_nesting_and_numbers_beyond_bounds() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    for row in (
        deep,
        '{"prompt": [{"role": "user", "content": "a", "tool_calls": [' + '{"a":' * 900 + "1" + "}" * 900 + "]}]}",
        '{"chosen": ' + "9" * 5000 + "}",
        '{"prompt": "a", "chosen": "b", "rejected": "c", "m": 1e999}',
        '{"prompt": "\\ud800", "chosen": "\\udfff b", "rejected": "c", "m": ' + "9" * 400 + "}",
    ):
        fuzz_rows.check(row)
