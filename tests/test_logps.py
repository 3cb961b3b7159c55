"""The shared forward against transformers' own, one sequence at a time with eager attention: values and gradients."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from stages.errors import RecipeError
from stages.logps.layout import Layout, pack
from stages.logps.model import PairLogprobs
from stages.logps.reading.loading import load, wrap

Pair = tuple[list[int], list[int], list[int]]

PAIRS: list[Pair] = [
    ([5, 6, 7], [8, 9, 1], [10, 1]),
    ([11], [12, 13, 14, 15, 1], [1]),
    ([20] * 30, [21, 1], [22, 23, 1]),
    (list(range(2, 12)), [3, 4, 5, 6, 1], [3, 4, 5, 7, 8, 9, 1]),  # completions with a common start
    ([], [9, 8, 1], [7, 1]),
]
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SMALL |= {"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
GROUPED = SMALL | {"num_key_value_heads": 2}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**GROUPED),
    "llama, biased, tied": LlamaConfig(**GROUPED, attention_bias=True, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen2, window in the upper layer": Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16),
    "gemma2": Gemma2Config(
        **GROUPED, head_dim=16, sliding_window=6, attn_logit_softcapping=3.0, final_logit_softcapping=2.0
    ),
    "gemma3": Gemma3TextConfig(**GROUPED, head_dim=16, sliding_window=6),
    "mistral": MistralConfig(**GROUPED, sliding_window=4),
    "phi3": Phi3Config(**GROUPED, sliding_window=7),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    "olmo2": Olmo2Config(**GROUPED),
    "gpt_oss": GptOssConfig(**GROUPED, head_dim=16, num_local_experts=2, num_experts_per_tok=1, sliding_window=6),
}
APART: dict[str, tuple[PreTrainedConfig, str]] = {
    "bloom": (
        BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=2),
        "not reached by transformers' attention interface",
    ),
    "mamba": (
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4),
        "not reached by transformers' attention interface",
    ),
}


def make(config: PreTrainedConfig) -> PreTrainedModel:
    """A random model whose weights, biases and norms included, are far enough from zero to matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def own_logps(model: PreTrainedModel, pairs: Sequence[Pair]) -> torch.Tensor:
    """The definition: every sequence by itself through the model's own forward and head."""
    logps = []
    for prompt, *sides in pairs:
        for side in sides:
            logits = model(input_ids=torch.tensor([prompt + side]), use_cache=False).logits[0].float()
            known = logits[max(len(prompt) - 1, 0) : -1].log_softmax(-1)
            if not prompt:  # nothing comes before the first token
                logps.append(torch.zeros(1))
                side = side[1:]
            logps.append(known.gather(1, torch.tensor(side, dtype=torch.int64)[:, None])[:, 0])
    return torch.cat(logps)


def rounding(model: PairLogprobs, layout: Layout, values: torch.Tensor, coefficients: torch.Tensor) -> float:
    """How far apart two computations of the gradient of `(values * coefficients).sum()` may be where its terms cancel,
    as those of a key's bias do, or of two answers that are one: nothing can be relative to a gradient that is zero but
    for rounding.

    The terms are as large as the largest gradient of the same sum without its signs. Each comes through a chain of
    inner products, forth and back, and is summed over the tokens: roundings of a chain add up like those of one sum
    that has the terms of them all, n. Their signs are random, so a computation is off by 2 sqrt(n) eps / 2 (Higham and
    Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019, with lambda = 2), and two are by twice that.
    eps is float32's for weights of double precision too: transformers takes norms and some softmaxes in float32.
    """
    model.zero_grad()  # what there is would be added to
    whole = (values * coefficients.abs()).sum()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    terms = torch.autograd.grad(whole, weights, retain_graph=True, allow_unused=True) if whole.requires_grad else ()
    largest = max((term.norm().item() for term in terms if term is not None), default=0.0)
    number = layout.input_ids.numel() + 2 * sum(max(weight.shape) for weight in model.parameters())
    return 2 * number**0.5 * torch.finfo(torch.float32).eps * largest


def assert_same(config: PreTrainedConfig, model: PairLogprobs, pairs: Sequence[Pair]) -> None:
    reference = make(config)
    reference.set_attn_implementation("eager")
    expected, layout = own_logps(reference, pairs), model.lay_out(pairs)
    values = model(layout)
    torch.testing.assert_close(values, expected, atol=1e-4, rtol=0)
    coefficients = torch.linspace(-1, 2, len(values))
    bound = rounding(model, layout, values, coefficients)
    model.zero_grad()
    for each in (values, expected):
        (each * coefficients).sum().backward()
    gradients = dict(reference.named_parameters())
    for name, weight in model.causal_lm.named_parameters():
        theirs = gradients[name].grad
        if weight.grad is None or theirs is None:
            assert weight.grad is theirs, name
            continue
        assert (weight.grad - theirs).norm() <= 1e-3 * theirs.norm() + bound, name


@pytest.mark.parametrize("architecture", CONFIGS)
def test_values_and_gradients_are_those_of_transformers(architecture: str) -> None:
    model = wrap(make(CONFIGS[architecture]), architecture)
    assert model.shares_prompts
    assert_same(CONFIGS[architecture], model, PAIRS)


@pytest.mark.parametrize("architecture", APART)
def test_what_cannot_share_is_computed_apart_and_said(architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    config, reason = APART[architecture]
    with caplog.at_level(logging.WARNING, "raydpo"):
        model = wrap(make(config), architecture)
    assert not model.shares_prompts
    assert reason in caplog.text
    assert "computed apart" in caplog.text
    assert_same(config, model, PAIRS)


def test_scores_at_their_cap_are_capped_in_both_layouts() -> None:
    """Gemma 2: SDPA, which transformers takes unless told otherwise, leaves the soft cap of scores out."""

    def steep() -> PreTrainedModel:
        model = make(CONFIGS["gemma2"])
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.q_proj.weight.mul_(12)
        return model

    theirs, ours = steep(), wrap(steep(), "gemma2")
    with torch.no_grad():
        theirs.set_attn_implementation("sdpa")
        uncapped = own_logps(theirs, PAIRS)
        theirs.set_attn_implementation("eager")
        capped = own_logps(theirs, PAIRS)
        assert (uncapped - capped).abs().max() > 0.1
        for shares in (True, False):
            ours.share_prompts(shares)
            torch.testing.assert_close(ours(ours.lay_out(PAIRS)), capped, atol=1e-4, rtol=0)


@cache
def llama() -> PairLogprobs:
    return wrap(make(CONFIGS["llama"]), "llama")


@cache
def llama_by_itself() -> PreTrainedModel:
    return make(CONFIGS["llama"])


# Three ids, so that prompts, starts and whole completions coincide often.
some_ids = st.lists(st.integers(2, 4), max_size=12)
completions = st.lists(st.integers(2, 4), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(pairs=st.lists(st.tuples(some_ids, completions, completions), min_size=1, max_size=4))
@example(pairs=[([], [2], [3])])
@example(pairs=[([2], [3], [3, 4])])
@example(pairs=[([2] * 40, [3] * 20, [4])])
def test_any_lengths(pairs: list[Pair]) -> None:
    with torch.no_grad():
        layout = llama().lay_out(pairs)
        assert layout.num_tokens <= max(1, sum(len(ids) for pair in pairs for ids in pair))
        torch.testing.assert_close(llama()(layout), own_logps(llama_by_itself(), pairs), atol=1e-4, rtol=0)


def test_what_both_sequences_start_with_stands_once() -> None:
    layout = pack([([5, 6, 7], [8, 9, 1], [8, 2, 3, 1])])
    assert layout.input_ids.tolist() == [[5, 6, 7, 8, 9, 2, 3]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 4, 5]]
    assert layout.targets.tolist() == [8, 9, 1, 8, 2, 3, 1]
    assert layout.sources.tolist() == [2, 3, 4, 2, 3, 5, 6]
    assert layout.owners.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert layout.stretches.lengths == (5, 2)
    assert layout.stretches.contexts == (5, 6)
    assert layout.stretches.context.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 5, 6]


def test_sums_are_over_each_completion() -> None:
    layout = pack(PAIRS)
    chosen, rejected = layout.sums(torch.ones(len(layout.targets)))
    assert chosen.tolist() == [3, 5, 2, 5, 3]
    assert rejected.tolist() == [2, 1, 3, 7, 2]
    assert [len(row) for row in layout.split(layout.targets)] == [3, 2, 5, 1, 2, 3, 5, 7, 3, 2]
    assert [lengths.tolist() for lengths in layout.lengths()] == [chosen.tolist(), rejected.tolist()]
    tails = [row.tolist() for row in layout.split(layout.in_tail())]
    assert tails[:4] == [[0, 0, 1], [0, 0], [0, 1, 1, 1, 1], [0]]
    assert tails[6:8] == [[0] * 5, [0] * 5 + [1] * 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention over variable lengths needs a GPU")
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt_neox"])
def test_the_kernels_of_a_gpu_agree(architecture: str) -> None:
    """bfloat16 by varlen flash attention, against float32 by SDPA a stretch."""
    config = CONFIGS[architecture]
    exact = wrap(make(config), architecture)
    fast = wrap(make(config).bfloat16().cuda(), architecture)
    with torch.no_grad():
        layout = exact.lay_out(PAIRS)
        torch.testing.assert_close(fast(layout.to("cuda")).cpu(), exact(layout), atol=0.1, rtol=0.02)


def test_a_model_too_short_is_refused(tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match=r"takes at most 256 tokens .* up to 300.*shard\.max_length to 256"):
        load(str(tiny_model), "float32", 300)


def test_damaged_weights_are_refused() -> None:
    model = make(CONFIGS["llama"])
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(RecipeError, match="llama gives log-probs that are not finite: its weights are damaged"):
        wrap(model, "llama")


def test_frequencies_that_depend_on_neighbours_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = Phi3Config(**GROUPED, rope_parameters=rope, original_max_position_embeddings=32)
    make(config).save_pretrained(tmp_path)
    assert load(str(tmp_path), "float32", 32).shares_prompts
    with pytest.raises(
        RecipeError, match=r"LongRoPE.* more than 32 tokens.*up to 40 tokens\. Set shard\.max_length to 32"
    ):
        load(str(tmp_path), "float32", 40)
