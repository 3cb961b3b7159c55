"""The memory of words gives a byte-level tokenizer's own ids; other tokenizers are left to themselves."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from stages.shard.rendering.words import words_of

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


CUTS = {
    "gpt-2": GPT_2,
    "llama-3": pre_tokenizers.Sequence([split(LLAMA_3), BYTES]),
    "gpt-4o": pre_tokenizers.Sequence([split(GPT_4O), BYTES]),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT_2]),
    "deepseek": pre_tokenizers.Sequence([split(r"\p{N}{1,3}"), split(r"[一-龥]+"), split(LLAMA_3), BYTES]),
}


def made(cut: Any, **of_model: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**of_model))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = cut
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    lines = ["the tide is here, isn't it? It's 12345 \n\n I'LL say: don't!", "PAD the end of 2026\n"] * 8
    tokenizer.train_from_iterator(lines, trainer)
    special = [AddedToken(text, special=True, normalized=False) for text in ("<|im_end|>", "<|im|", "PAD")]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


TOKENIZERS = {name: made(cut) for name, cut in CUTS.items()}
WORDS = {name: words_of(backend) for name, backend in TOKENIZERS.items()}
BITS = st.sampled_from(
    ["<|im_end|>", "<|im|", "PAD", "<think>", "the", " it's", "'LL", "  ", "\n", " \r\n", "12345", "'"]
)


@pytest.mark.parametrize("name", CUTS)
@given(bits=st.lists(BITS | st.text(st.characters(max_codepoint=127), max_size=6), max_size=12), literal=st.booleans())
def test_ids_are_the_tokenizers_own(name: str, bits: list[str], literal: bool) -> None:
    backend, words, text = TOKENIZERS[name], WORDS[name], "".join(bits)
    assert words is not None
    backend.encode_special_tokens = literal
    ids = words.ids(text, literal)
    assert ids == backend.encode(text, add_special_tokens=False).ids or (ids is None and not text.isascii())


def with_prefix() -> Tokenizer:
    return made(pre_tokenizers.ByteLevel(add_prefix_space=True))


def of_sentencepiece() -> Tokenizer:
    return made(pre_tokenizers.Metaspace())


def random_merges() -> Tokenizer:
    return made(GPT_2, dropout=0.5)


def greedy_added() -> Tokenizer:
    tokenizer = made(GPT_2)
    tokenizer.add_special_tokens([AddedToken("<end>", rstrip=True, normalized=False)])
    return tokenizer


def lowered() -> Tokenizer:
    tokenizer = made(GPT_2)
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def unknown_expression() -> Tokenizer:
    return made(pre_tokenizers.Sequence([split(r"\p{Greek}+|."), BYTES]))


@pytest.mark.parametrize(
    "other", [with_prefix, of_sentencepiece, random_merges, greedy_added, lowered, unknown_expression]
)
def test_tokenizers_whose_ids_are_not_those_of_words_are_left_alone(other: Any) -> None:
    assert words_of(other()) is None
