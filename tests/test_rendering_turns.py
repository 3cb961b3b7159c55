"""What of a dialogue is trained, and tools in it."""

from typing import Any

import pytest
from chat_family import TIDE, Family, a, call, u

from stages.shard.tokenization import Completion
from stages.shard.triple import Labelled, Rejected, Triple

# Turns


DIALOGUE = [a("one"), u("more?"), a("two")]


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma", "phi", "mistral", "qwen3", "gpt-oss", "smollm3"])
def test_what_others_say_in_a_completion_is_context(family: str) -> None:
    made = Family(family)
    pair = made.made([u("hi")], DIALOGUE)
    first, second = made.trained(pair)
    assert ("one" in first, "more?" in first, "two" in second, "more?" in second) == (True, False, True, False)
    assert second.endswith(made.text(pair.chosen_ids[-1:]))
    assert first.endswith(("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>"))
    last = Family(family, train_on="last_turn")
    assert last.trained(last.made([u("hi")], DIALOGUE)) == [second]
    every = Family(family, train_on="completion")
    assert every.trained(every.made([u("hi")], DIALOGUE)) == [made.text(pair.chosen_ids)]


def test_dialogues_that_part_at_a_user_s_turn() -> None:
    made = Family("chatml")
    pair = made.made([u("hi"), a("one")], [u("more?"), a("two"), u("thanks")], [u("less?"), a("three")])
    assert made.text(pair.prompt_ids).endswith("one<|im_end|>\n")
    assert made.trained(pair) == ["two<|im_end|>"]
    assert made.text(pair.chosen_ids).endswith("two<|im_end|>")  # nobody answers the thanks
    made_of = made.made([u("hi"), a("one")], [u("more?")], [u("less?"), a("three")])
    assert made_of.reason == "nothing_trained"


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma", "phi", "mistral", "smollm3"])
def test_an_assistant_s_beginning_is_continued(family: str) -> None:
    made = Family(family)
    begun = [u("hi"), a("My answer is:")]
    pair = made.made(begun, [a(" yes")], [a(" no")])
    assert made.text(pair.prompt_ids).endswith("My answer is:")
    assert made.trained(pair)[0].startswith(" yes")
    assert pair.chosen_ids[-1] not in pair.prompt_ids[-10:]
    whole = made.made([u("hi")], [a("My answer is: yes")])
    assert pair.prompt_ids[: len(whole.prompt_ids)] == whole.prompt_ids
    assert made.text(pair.prompt_ids + pair.chosen_ids) == made.text(whole.prompt_ids + whole.chosen_ids)
    nothing = made.made([u("hi"), a("")], [a("yes")], [a("no")])  # a beginning without words
    assert nothing == made.made([u("hi")], [a("yes")], [a("no")])


def test_a_completion_that_repeats_the_prompt_is_set_aside() -> None:
    made = Family("chatml")
    whole = [u("hi"), a("yes")], [u("hi"), a("no")]
    assert made.made([u("hi ")], *whole).reason == "doubled_content"
    prompt = "Tell me about the tides of the sea."
    (row,) = made.ours.tokenize([Triple(prompt, prompt + " yes", prompt + " no")])
    assert isinstance(row, Rejected)
    assert row.reason == "doubled_content"
    (row,) = made.ours.tokenize([Triple("hi <think>\n", "<think> so </think> yes", "<think> no")])
    assert isinstance(row, Rejected)
    assert row.reason == "doubled_content"


def test_a_turn_that_is_cut_away_leaves_nothing_trained() -> None:
    made = Family("chatml", max_length=24, max_prompt_length=8, train_on="last_turn")
    assert made.reason([u("hi")], DIALOGUE)[0] == "nothing_trained"


def test_sides_that_differ_after_their_last_trained_token_make_no_pair() -> None:
    """Cut inside a user's turn, of which nothing is trained: no loss could tell such sides apart."""
    sides = [[a("one"), u(word * 20), a("two")] for word in ("more?", "less?")]
    whole = Family("chatml").made([u("hi")], *sides)  # the same words, after other questions
    assert whole.chosen_trained == whole.rejected_trained
    left = len(whole.prompt_ids) + whole.chosen_trained[2]
    reason = Family("chatml", max_length=left, max_prompt_length=left).reason([u("hi")], sides[0], rejected=sides[1])
    assert reason[0] == "too_long"
    assert f"alike in the {whole.chosen_trained[1]} tokens that are left of them up to the last trained" in reason[1]


def test_labelled_completions() -> None:
    made = Family("chatml")
    (row,) = made.ours.tokenize([Labelled([u("hi")], DIALOGUE, True)])
    assert isinstance(row, Completion)
    assert len(row.completion_trained) == 4


# Tools


@pytest.mark.parametrize(
    "arguments", [{"port": "Å", "deep": {"a": [1, None]}}, '{"port": "Å", "deep": {"a": [1, null]}}']
)
@pytest.mark.parametrize("content", [None, ""])
def test_a_completion_may_be_only_a_call(arguments: Any, content: str | None) -> None:
    written = '{"port": "Å", "deep": {"a": [1, null]}}'
    prompt, chosen = Family("qwen3").texts([u("when?")], [a(content, tool_calls=call(arguments))], tools=[TIDE])
    assert '"name": "tide"' in prompt
    assert chosen.endswith(
        '<tool_call>\n{"name": "tide", "arguments": ' + written + "}\n</tool_call><|im_end|>"
    )  # nested, and no text in a text
    prompt, chosen = Family("gpt-oss").texts([u("when?")], [a(content, tool_calls=call(arguments))])
    assert chosen == f" to=functions.tide<|channel|>commentary json<|message|>{written}<|call|>"


def test_results_of_tools_are_context() -> None:
    made = Family("qwen3")
    pair = made.made(
        [u("when?")],
        [a(None, tool_calls=call({"port": "P"})), {"role": "tool", "name": "tide", "content": "at six"}, a("At six.")],
        tools=[TIDE],
    )
    assert made.trained(pair) == [
        '<tool_call>\n{"name": "tide", "arguments": {"port": "P"}}\n</tool_call><|im_end|>',
        "<think>\n\n</think>\n\nAt six.<|im_end|>",
    ]
    assert "<tool_response>\nat six\n</tool_response>" in made.text(pair.chosen_ids)


def test_what_a_template_writes_as_json_is_found() -> None:
    said = {"role": "tool", "name": "tide", "content": '{"high": "six"}\n'}
    prompt, _ = Family("gpt-oss").texts([u("when?"), a(None, tool_calls=call({"port": "P"})), said], [a("At six.")])
    assert r'"{\"high\": \"six\"}\n"' in prompt


@pytest.mark.parametrize(
    ("chosen", "tools"),
    [([a("yes")], [TIDE]), ([a("yes", tool_calls=call({"port": "P"}))], None), ([a(None, tool_calls=call({}))], None)],
)
def test_tools_that_a_template_ignores_set_the_row_aside(chosen: Any, tools: Any) -> None:
    reason, detail = Family("chatml").reason([u("hi")], chosen, tools=tools)
    assert reason == "lost_content"
    assert "tool" in detail
