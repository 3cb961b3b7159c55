"""The forward pass against transformers' own logits, and against itself in parts."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, Qwen3Config

from stages.errors import RecipeError
from stages.logps import head
from stages.logps.layout import pack
from stages.logps.model import load

PAIRS = [([5, 6, 7], [8, 9, 1], [10, 1]), ([11], [12, 13, 14, 15, 1], [1]), ([20] * 30, [21, 1], [22, 23, 1])]

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CONFIGS = {
    "gemma2, soft-capped logits": Gemma2Config(
        **SMALL, num_key_value_heads=1, head_dim=16, final_logit_softcapping=2.0, max_position_embeddings=64
    ),
    "qwen3, untied head": Qwen3Config(
        **SMALL, num_key_value_heads=1, head_dim=16, tie_word_embeddings=False, max_position_embeddings=64
    ),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    "gpt_neox": GPTNeoXConfig(**SMALL, max_position_embeddings=64),
}


def save(config: object, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def expected_logps(folder: Path, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """One sequence at a time through the model's own forward: the definition."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0].double()
    logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return logps.gather(1, torch.tensor(completion)[:, None])[:, 0].float()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_token_logps_are_those_of_transformers(architecture: str, tmp_path: Path) -> None:
    folder = save(CONFIGS[architecture], tmp_path)
    layout = pack(PAIRS)
    with torch.no_grad():
        rows = layout.split(load(str(folder), "float32", 64)(layout))
    expected = [expected_logps(folder, prompt, side) for prompt, *sides in PAIRS for side in sides]
    for row, reference in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, reference, atol=1e-5, rtol=0)


def test_sums_are_over_each_completion() -> None:
    layout = pack(PAIRS)
    chosen, rejected = layout.sums(torch.ones(len(layout.targets)))
    assert chosen.tolist() == [3, 5, 2]
    assert rejected.tolist() == [2, 1, 3]


def test_values_and_gradients_do_not_depend_on_chunks() -> None:
    torch.manual_seed(0)
    lm_head, rule, targets = torch.nn.Linear(8, 50), head.LogitRule(soft_cap=3.0), torch.randint(50, (20,))

    def values_and_gradients(chunk: int) -> list[torch.Tensor]:
        hidden = torch.linspace(-2, 2, 160).view(20, 8).requires_grad_()
        values = head.target_logps(hidden, lm_head, rule, targets, chunk)
        return [values, *torch.autograd.grad(values.square().sum(), [hidden, *lm_head.parameters()])]

    for whole, chunked in zip(values_and_gradients(20), values_and_gradients(3), strict=True):
        torch.testing.assert_close(whole, chunked)


def test_a_model_too_short_is_refused(tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match=r"takes at most 256 tokens .* up to 300.*shard\.max_length to 256"):
        load(str(tiny_model), "float32", 300)
