"""Every dialogue under every family's template: nothing is lost, and what is trained are the assistant's turns."""

import datetime
import re
from functools import cache
from typing import Any

from chat_family import Family, a, u
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.shard.tokenization import Pair
from stages.shard.triple import Rejected

SAID = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(list(" \n<|>/[]"))), min_size=1, max_size=12
).filter(str.strip)
SPELLED = st.sampled_from(
    ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>", "<|end|>", "[INST]", "<eos>", "<|user|>"]
)
TEXT = st.one_of(SAID, st.tuples(SAID, SPELLED, SAID).map("".join))
PLAIN_FAMILIES = ["chatml", "chatml on a base", "llama3", "gemma", "phi", "mistral", "smollm3"]
family_of = cache(Family)


def _january(form: str) -> str:

    return datetime.date(2026, 1, 31).strftime(form)


def turns(number: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    """A user's turn and an assistant's, and so on."""
    return st.lists(TEXT, min_size=number, max_size=number).map(
        lambda texts: [u(text) if i % 2 == 0 else a(text) for i, text in enumerate(texts)]
    )


@settings(max_examples=300, deadline=None)
@given(data=st.data(), family=st.sampled_from(PLAIN_FAMILIES))
def test_every_dialogue(data: st.DataObject, family: str) -> None:
    made = family_of(family)
    prompt = data.draw(turns(data.draw(st.sampled_from([1, 3]))))
    chosen = data.draw(turns(data.draw(st.sampled_from([2, 4]))))[1:]
    pair = made.made(prompt, chosen, [a("other than that")])
    assert isinstance(pair, Pair), pair
    # Nothing of the text is lost, but white space and ends of text after the end of the turn.
    whole = made.hf.apply_chat_template([*prompt, *chosen], tokenize=False, strftime_now=_january)
    written = made.text(pair.prompt_ids + pair.chosen_ids)
    assert whole.startswith(written)
    assert not whole[len(written) :].replace("<|endoftext|>", "").strip()
    # What is trained are the assistant's turns, each with one end, and nothing else.
    ends = set(made.hf.convert_tokens_to_ids(list(made.ours._renderer.control.stops)))
    answers = [message["content"].strip() for message in chosen if message["role"] == "assistant"]
    edges = pair.chosen_trained
    spans = [pair.chosen_ids[i:j] for i, j in zip(edges[::2], edges[1::2], strict=True)]
    assert [made.text(ids[:-1]).strip() for ids in spans] == answers
    assert all([i for i in ids if i in ends] == ids[-1:] for ids in spans)
    assert spans[-1][-1:] == pair.chosen_ids[-1:]


THINKING_FAMILIES = ["qwen3", "gpt-oss", "opening", "r1"]
Said = tuple[str, str | None]  # an answer, and what was thought before it
WORDS = TEXT.map(str.strip).filter(lambda text: "think>" not in text)
ANSWER = st.tuples(WORDS, st.none() | WORDS.map("because {}".format))


@settings(max_examples=300, deadline=None)
@given(
    before=st.none() | ANSWER,
    answers=st.lists(ANSWER, min_size=1, max_size=2),
    asked=TEXT,
    spelled=st.sampled_from(["content", "reasoning_content", "thinking"]),
    family=st.sampled_from(THINKING_FAMILIES),
)
def test_every_dialogue_with_reasoning(
    before: Said | None, answers: list[Said], asked: str, spelled: str, family: str
) -> None:
    """A pair has all that was thought in its trained turns, or the template would have lost it and the row says so."""

    def turn(said: Said, key: str = spelled) -> dict[str, Any]:
        answer, thought = said
        if thought is None:
            return a(answer)
        return a(f"<think>\n{thought}\n</think>\n\n{answer}") if key == "content" else a(answer, **{key: thought})

    made = family_of(family)

    def dialogue(key: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        prompt = [u(asked), *([turn(before, key), u("and?")] if before else [])]
        return prompt, [message for said in answers for message in (turn(said, key), u("and then?"))][:-1]

    pair = made.made(*dialogue(spelled), [turn(("other than that", "why not"))])
    known = {"qwen3": "reasoning_content", "gpt-oss": "thinking"}.get(family)  # what the template calls it
    if isinstance(pair, Rejected):
        assert pair.reason in ("lost_content", "template")
        if known:  # these drop the reasoning of all turns but the last, and nothing else
            assert any(thought for _, thought in answers[:-1]), pair
        else:  # the prompt opens the reasoning: answers without it are none, and fields and R1's own are dropped
            assert family == "r1" or spelled != "content" or answers[0][1] is None, pair
        return
    prompt, chosen = dialogue(known if known and spelled != "content" else spelled)
    whole = made.hf.apply_chat_template([*prompt, *chosen], tokenize=False, strftime_now=_january)
    assert whole.rstrip() == made.text(pair.prompt_ids + pair.chosen_ids).rstrip()
    edges = pair.chosen_trained
    spans = [made.text(pair.chosen_ids[i:j]) for i, j in zip(edges[::2], edges[1::2], strict=True)]
    assert len(spans) == len(answers)
    for span, (answer, thought) in zip(spans, answers, strict=True):
        assert re.search(r"<\|(im_end|end|return)\|>$", span)
        assert answer in span
        assert (thought or "") in span
        assert not re.search(r"<\|(im_start|start)\|>user", span)
