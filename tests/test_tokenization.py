"""Text to ids: the end token, truncation, identity, and what makes no pair."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from stages.errors import RecipeError
from stages.shard.config import ShardConfig
from stages.shard.tokenization import Completion, Pair, Tokenizer, _truncate, hash_of, load_tokenizer
from stages.shard.triple import Rejected, Triple


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(str(tiny_model))


def config(**fields: Any) -> ShardConfig:
    return ShardConfig(source="x", tokenizer="/x", **fields)


def tokenize(triple: Triple, tokenizer: Any, config: ShardConfig) -> Any:
    return Tokenizer(config, tokenizer).one(triple)


def test_plain_text_ends_with_one_end_token(tokenizer: Any) -> None:
    pair = tokenize(Triple("the weather", " is good", " is bad"), tokenizer, config())
    assert tokenizer.decode(pair.prompt_ids) == "the weather"
    assert tokenizer.decode(pair.chosen_ids) == " is good<|im_end|>"
    assert pair.rejected_ids.count(tokenizer.eos_token_id) == 1


def test_a_chat_ends_with_the_end_token_and_not_with_the_template_s_newline(tokenizer: Any) -> None:
    user, good, bad = ({"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "yo"), ("assistant", "no")))
    pair = tokenize(Triple([user], [good], [bad]), tokenizer, config())
    assert tokenizer.decode(pair.prompt_ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(pair.chosen_ids) == "yo<|im_end|>"
    assert tokenizer.decode(pair.rejected_ids) == "no<|im_end|>"


def wholly_trained(prompt: list[int], chosen: list[int], rejected: list[int]) -> Pair:
    return Pair(prompt, chosen, rejected, [0, len(chosen)], [0, len(rejected)], False, 0)


def test_pair_id_follows_from_the_three_lists_and_what_is_trained() -> None:
    pair = wholly_trained([1], [2, 3], [4])
    assert pair.pair_id == "f3be3ed674f30fb85f957436675a8027"  # pinned: it names rows on disk
    ids = {wholly_trained(*lists).pair_id for lists in (([1], [2, 3], [4]), ([1, 2], [3], [4]), ([1], [2], [3, 4]))}
    assert len(ids) == 3
    assert replace(pair, cut_prompt=True, cut_completions=2).pair_id == pair.pair_id
    assert len({replace(pair, chosen_trained=spans).pair_id for spans in ([0, 2], [0, 1], [1, 2])}) == 3
    labelled = Completion([1], [2, 3], [0, 2], True, False, 0)
    assert labelled.row_id == hash_of([1], [2, 3], [1])[:16]
    assert labelled.row_id != replace(labelled, completion_trained=[1, 2]).row_id


ids = st.integers(1, 30)


@given(
    prompt=ids,
    chosen=ids,
    rejected=ids,
    max_length=st.integers(8, 40),
    side=st.sampled_from(["keep_end", "keep_start"]),
)
def test_truncation(prompt: int, chosen: int, rejected: int, max_length: int, side: str) -> None:
    whole = list(range(prompt)), [*range(100, 99 + chosen), 1], [*range(200, 199 + rejected), 1, 1]
    prompt_ids, sides, cut_prompt, cut_completions = _truncate(
        whole[0], [*whole[1:]], config(max_length=max_length, truncation=side)
    )
    kept = len(prompt_ids)
    assert kept + max(map(len, sides)) <= max_length
    assert prompt_ids == (whole[0][-kept:] if side == "keep_end" else whole[0][:kept])
    assert cut_prompt == (kept < prompt)
    cut = 0
    for ours, full in zip(sides, whole[1:], strict=True):
        assert ours == full[: len(ours)]
        cut += len(ours) < len(full)
    assert cut_completions == cut
    if cut:  # completions give way last: the prompt is down to its floor
        assert kept == min(prompt, max_length // 2)


def test_drop_instead_of_truncation() -> None:
    with pytest.raises(Rejected, match=r"12 tokens, and max_length is 10") as caught:
        _truncate([5] * 6, [[7] * 6, [8]], config(max_length=10, truncation="drop"))
    assert caught.value.reason == "too_long"


@pytest.mark.parametrize(
    ("triple", "reason"),
    [
        (Triple("", "a", "b"), "empty"),
        (Triple("a", " ", "b"), "empty"),
        (Triple("a", "b", "b"), "equal"),
        (Triple([], [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]), "empty"),
        (Triple("a", "b" * 40 + "c", "b" * 40 + "d"), "too_long"),
        (Triple("a", "b", "c" * 4_000_001), "too_long"),  # no text of a size that takes the memory of a machine
    ],
)
def test_rows_that_make_no_pair(triple: Triple, reason: str, tokenizer: Any) -> None:
    with pytest.raises(Rejected) as caught:
        tokenize(triple, tokenizer, config(max_length=16))
    assert caught.value.reason == reason


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="names no end token"):
        load_tokenizer(str(tmp_path))
