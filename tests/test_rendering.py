"""Messages to exactly the tokens that a model should learn: ends of turn, reasoning, the recipe's say, the clock."""

import json
from pathlib import Path

import pytest
from chat_family import DATED, THOUGHT, TIDE, Family, a, call, s, u
from chat_templates import CHATML, LLAMA3, byte_tokenizer
from conftest import make_project
from tokenizers.processors import TemplateProcessing

from stages.errors import RecipeError
from stages.shard.tokenization import Pair
from stages.shard.triple import Triple

# End of turn


@pytest.mark.parametrize(
    ("family", "prompt", "chosen"),
    [
        ("chatml", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "yes<|im_end|>"),
        ("chatml on a base", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "yes<|im_end|>"),
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "yes<|eot_id|>",
        ),
        ("gemma", "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n", "yes<end_of_turn>"),
        ("phi", "<|user|>\nhi<|end|>\n<|assistant|>\n", "yes<|end|>"),
        ("mistral", "<s>[INST] hi [/INST]", " yes</s>"),
        ("qwen3", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "<think>\n\n</think>\n\nyes<|im_end|>"),
        (
            "gpt-oss",
            "<|start|>system<|message|>You are ChatGPT.\nCurrent date: 2026-01-31<|end|>"
            "<|start|>user<|message|>hi<|end|><|start|>assistant",
            "<|channel|>final<|message|>yes<|return|>",
        ),
    ],
)
def test_a_completion_ends_where_the_model_stops(family: str, prompt: str, chosen: str) -> None:
    assert Family(family).texts([u("hi")], [a("yes")]) == (prompt, chosen)


@pytest.mark.parametrize(
    "family", ["chatml", "chatml on a base", "llama3", "gemma", "phi", "mistral", "qwen3", "gpt-oss", "smollm3"]
)
def test_a_completion_that_was_cut_when_it_was_sampled_has_no_end(family: str) -> None:
    made = Family(family)
    turns = [a("one"), u("more?"), a("so it is")]
    whole, cut = (made.made([u("hi")], turns, [a("no")], chosen_cut=each) for each in (False, True))
    assert made.text(cut.chosen_ids).endswith("so it is")
    assert made.text(whole.chosen_ids).startswith(made.text(cut.chosen_ids))  # the first turn's end among it
    assert made.trained(cut)[0] == made.trained(whole)[0]
    assert made.trained(cut)[-1].endswith("so it is")
    assert (cut.prompt_ids, cut.rejected_ids) == (whole.prompt_ids, whole.rejected_ids)
    assert (whole.unended, cut.unended) == (0, 1)
    assert cut.pair_id != whole.pair_id


def test_where_a_completion_was_cut() -> None:
    """At the blanks of its text, in its reasoning, after a call that could be read; and not where it has an end."""
    chatml, qwen3 = Family("chatml"), Family("qwen3")
    assert chatml.texts([u("hi")], [a("yes, \n")], chosen_cut=True)[1] == "yes, \n"
    assert qwen3.texts([u("hi")], [a("", reasoning_content="so it")], chosen_cut=True)[1].endswith("so it")
    called = qwen3.texts([u("hi")], [a("", tool_calls=call({"port": "Oslo"}))], tools=[TIDE], chosen_cut=True)[1]
    assert called.endswith("</tool_call>")
    assert chatml.texts([u("hi"), a("My answer is")], [a(" yes")], chosen_cut=True)[1] == " yes"
    for ended in ([a("yes<|im_end|>")], [a("yes"), u("thanks")]):
        made = chatml.made([u("hi")], ended, chosen_cut=True)
        assert (chatml.text(made.chosen_ids), made.unended) == ("yes<|im_end|>", 0)
    plain = chatml.made("a b", " c", " d<|im_end|>", chosen_cut=True, rejected_cut=True)
    assert [chatml.text(ids) for ids in (plain.chosen_ids, plain.rejected_ids)] == [" c", " d<|im_end|>"]
    assert plain.unended == 1


@pytest.mark.parametrize("family", ["chatml on a base", "gemma", "phi"])
def test_a_notice_says_once_that_template_and_tokenizer_end_differently(family: str) -> None:
    made = Family(family)
    for _ in range(3):
        made.made([u("hi")], [a("yes")])
    (notice,) = made.ours.notices
    assert "the end token of the tokenizer is" in notice


def test_the_generation_config_says_where_a_model_stops(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("gemma")
    tokenizer.save_pretrained(tmp_path)
    eos = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    made = Family("gemma", hf=tokenizer, tokenizer=str(tmp_path))
    assert made.texts([u("hi")], [a("yes")])[1] == "yes<end_of_turn>"
    assert "generation_config.json stops" in made.ours.notices[0]
    # Plain text may end with any of these.
    (pair,) = made.ours.tokenize([Triple("a b", " c<end_of_turn>\n", " d")])
    assert isinstance(pair, Pair)
    assert (made.text(pair.chosen_ids), made.text(pair.rejected_ids)) == (" c<end_of_turn>", " d<eos>")


def test_a_template_that_closes_nothing_gets_the_end_token_and_no_white_space_before_it() -> None:
    tokenizer = byte_tokenizer("chatml")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert Family("chatml", hf=tokenizer).texts([u("hi")], [a("yes")]) == ("user: hi\nassistant: ", "yes<|im_end|>")


@pytest.mark.parametrize("ending", ["<|im_end|>", "<|im_end|>\n", " <|im_end|><|im_end|>"])
def test_a_text_that_has_its_end_token_gets_no_second_one(ending: str) -> None:
    made = Family("chatml")
    assert made.texts([u("hi")], [a("yes" + ending)])[1].replace(" ", "") == "yes<|im_end|>"
    (pair,) = made.ours.tokenize([Triple("hi", " yes" + ending, " no<|im_end|>")])
    assert isinstance(pair, Pair)
    assert pair.rejected_ids.count(made.hf.eos_token_id) == 1 == pair.chosen_ids.count(made.hf.eos_token_id)
    assert pair.chosen_ids[-1] == made.hf.eos_token_id


def test_a_prompt_has_one_start_token() -> None:
    tokenizer = byte_tokenizer("llama3")
    start, number = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"{start} $A", special_tokens=[(start, number)])
    made = Family("llama3", hf=tokenizer)
    for prompt in ("hi there", f"{start}hi there"):
        (pair,) = made.ours.tokenize([Triple(prompt, " yes", " no")])
        assert isinstance(pair, Pair)
        assert made.text(pair.prompt_ids) == f"{start}hi there"
        assert number not in pair.chosen_ids
    assert made.texts([u("hi")], [a("yes")])[0].count(start) == 1


# Reasoning


def test_reasoning_of_the_last_turn_stays_and_of_earlier_turns_goes() -> None:
    made = Family("qwen3")
    prompt, chosen = made.texts([u("hi"), a("<think>\nold\n</think>\n\nwell"), u("and?")], [a(THOUGHT)])
    assert "old" not in prompt
    assert prompt.endswith("assistant\nwell<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n")
    assert chosen == THOUGHT + "<|im_end|>"
    assert made.texts([u("hi")], [a("yes", reasoning_content="so and so")])[1] == chosen
    assert made.texts([u("hi")], [a("yes", thinking="so and so")])[1] == chosen  # what this template calls otherwise


def test_reasoning_that_a_template_drops_sets_the_row_aside() -> None:
    reason, detail = Family("r1").reason([u("hi")], [a(THOUGHT)])
    assert reason == "lost_content"
    assert "does not continue the prompt" in detail
    assert "so and so" in detail
    assert Family("chatml").reason([u("hi")], [a("yes", reasoning_content="so and so")])[0] == "lost_content"


def test_a_completion_goes_on_after_the_reasoning_that_the_prompt_opens() -> None:
    made = Family("opening")
    for text in (THOUGHT, THOUGHT.replace("<think>\n", "<think>")):
        prompt, chosen = made.texts([u("hi")], [a(text)], rejected=[a("<think>\n</think>no")])
        assert prompt.endswith("<|im_start|>assistant\n<think>\n")
        assert chosen == "so and so\n</think>\n\nyes<|im_end|>"
    reason, detail = made.reason([u("hi")], [a("yes")])  # it does not think, and the prompt says that it does
    assert (reason, "<think>" in detail) == ("template", True)


def test_reasoning_that_a_template_opens_twice_sets_the_row_aside() -> None:
    tokenizer = byte_tokenizer("chatml")
    tokenizer.chat_template = CHATML.replace(
        "{{ m['content'] }}", "{{ '<think>\n' if m['role'] == 'assistant' else '' }}{{ m['content'] }}"
    )
    assert Family("chatml", hf=tokenizer).reason([u("hi")], [a(THOUGHT)])[0] == "doubled_content"


def test_content_that_a_template_writes_twice_or_never_sets_the_row_aside() -> None:
    for written, reason in (("{{ m['content'] }} {{ m['content'] }}", "doubled_content"), ("?", "lost_content")):
        tokenizer = byte_tokenizer("chatml")
        tokenizer.chat_template = CHATML.replace("{{ m['content'] }}", written)
        assert Family("chatml", hf=tokenizer).reason([u("hi")], [a("yes")])[0] == reason
    tokenizer.chat_template = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper }}")
    assert Family("chatml", hf=tokenizer).reason([u("hi")], [a("yes")])[0] != ""


def test_kwargs_of_the_recipe_and_of_the_row_reach_the_template() -> None:
    block = "<think>\n\n</think>\n\n"
    off = Family("qwen3", {"kwargs": {"enable_thinking": False}})
    prompt, chosen = off.texts([u("hi")], [a("yes")])
    assert (prompt.endswith("assistant\n" + block), chosen) == (True, "yes<|im_end|>")
    prompt, chosen = off.texts([u("hi")], [a("yes")], chat_kwargs={"enable_thinking": True})
    assert (prompt.endswith("assistant\n"), chosen) == (True, block + "yes<|im_end|>")
    assert off.reason([u("hi")], [a("yes")], chat_kwargs={"tokenize": True})[0] == "malformed"
    with pytest.raises(RecipeError, match="tokenize is set by raydpo"):
        Family("qwen3", {"kwargs": {"tokenize": True}})


def test_flags_in_the_system_message_work_and_are_no_lost_content() -> None:
    prompt, chosen = Family("smollm3").texts([s("Be kind. /no_think"), u("hi")], [a("yes")])
    assert "Be kind.<|im_end|>" in prompt
    assert prompt.endswith("<think>\n\n</think>\n")
    assert chosen == "yes<|im_end|>"
    prompt, chosen = Family("smollm3").texts([s("Be kind. /think"), u("hi")], [a(THOUGHT)])
    assert (prompt.endswith("assistant\n"), chosen) == (True, THOUGHT + "<|im_end|>")


def test_channels() -> None:
    made = Family("gpt-oss")
    prompt, chosen = made.texts([u("hi")], [a("yes", thinking="so and so")])
    assert prompt.endswith("<|start|>assistant")
    assert chosen == (
        "<|channel|>analysis<|message|>so and so<|end|><|start|>assistant<|channel|>final<|message|>yes<|return|>"
    )
    # It calls the reasoning otherwise.
    assert made.texts([u("hi")], [a("yes", reasoning_content="so and so")])[1] == chosen


# The recipe's say


def test_a_template_of_the_recipe_s_own_and_a_system_message(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(CHATML)
    made = Family("llama3", {"template": str(tmp_path / "chat.jinja"), "system": "Be kind."})
    prompt, chosen = made.texts([u("hi")], [a("yes")])
    assert prompt.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user")
    assert made.texts([s("Be brief."), u("hi")], [a("yes")])[0].startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert chosen == "yes<|im_end|><|eot_id|>"  # its end of turn is no token of this tokenizer, which a notice says
    assert "<|im_end|>" in made.ours.notices[0]
    with pytest.raises(RecipeError, match="cannot be read"):
        Family("llama3", {"template": str(tmp_path / "none.jinja")})


def test_the_template_s_file_is_part_of_the_identity_by_content(tmp_path: Path, tiny_model: Path) -> None:
    project, template = make_project(tmp_path, tiny_model, num_triples=2), tmp_path / "chat.jinja"
    names = {project.plan()["shard"].fingerprint}
    for content in (CHATML, LLAMA3):
        template.write_text(content)
        names.add(project.plan(f"shard.chat.template={template}")["shard"].fingerprint)
    (tmp_path / "same.jinja").write_text(LLAMA3)
    names.add(project.plan(f"shard.chat.template={tmp_path / 'same.jinja'}")["shard"].fingerprint)
    names.add(project.plan("shard.chat.kwargs.enable_thinking=false")["shard"].fingerprint)
    assert len(names) == 4
    with pytest.raises(RecipeError, match=r"shard\.chat\.template: there is no file"):
        project.plan("shard.chat.template=nowhere.jinja")


def test_messages_without_a_template_are_refused() -> None:
    tokenizer = byte_tokenizer("chatml")
    tokenizer.chat_template = None
    with pytest.raises(RecipeError, match="no chat template"):
        Family("chatml", hf=tokenizer).made([u("hi")], [a("yes")])


# The clock


@pytest.mark.parametrize("family", sorted(DATED))
def test_a_template_that_asks_the_clock_gets_the_recipe_s_date_or_is_refused(family: str) -> None:
    assert "31" in Family(family).texts([u("hi")], [a("yes")])[0]
    with pytest.raises(RecipeError, match=r"shard\.chat\.date: 2026-01-31"):
        Family(family, {"date": None}).made([u("hi")], [a("yes")])
    plain = Family(family, {"date": None}).ours.tokenize([Triple("hi", " yes", " no")])
    assert isinstance(plain[0], Pair)  # which no template writes
