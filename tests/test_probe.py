"""What is found out on an architecture in small, of models at the sizes they have: their weights are never made."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    Cohere2Config,
    CohereConfig,
    DeepseekV3Config,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    HrmTextConfig,
    JambaConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    ModernBertDecoderConfig,
    Olmo2Config,
    Olmo3Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SmolLM3Config,
    StableLmConfig,
)

from stages.errors import RecipeError
from stages.logps.check.miniature import miniatures
from stages.logps.check.probe import check_kernels, why_apart
from stages.logps.check.small_config import shrink
from stages.logps.model import PairLogprobs
from stages.logps.reading.loading import load, wrap

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LLAMA3 = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "rope_parameters": LLAMA3_ROPE,
    "eos_token_id": [128001, 128009],
}
LLAMA3 |= {"max_position_embeddings": 131072, "bos_token_id": 128000}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0}
YARN |= {"mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096}


def sized(hidden: int, inner: int, layers: int, heads: int, **others: object) -> dict[str, object]:
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
    } | others  # fmt: skip


def longrope(count: int) -> dict[str, object]:
    return LONGROPE | {"short_factor": [1.0 + 0.02 * i for i in range(count)], "long_factor": [2.0] * count}


SHARES: dict[str, PreTrainedConfig] = {
    "Llama-3.1-8B": LlamaConfig(**sized(4096, 14336, 32, 32), **LLAMA3),
    "Llama-3.1-70B": LlamaConfig(**sized(8192, 28672, 80, 64), **LLAMA3),
    "Qwen2.5-7B": Qwen2Config(
        **sized(3584, 18944, 28, 28),
        num_key_value_heads=4,
        vocab_size=152064,
        sliding_window=131072,
        use_sliding_window=False,
        max_window_layers=28,
        bos_token_id=151643,
        eos_token_id=151643,
    ),
    "Qwen3-8B": Qwen3Config(**sized(4096, 12288, 36, 32), num_key_value_heads=8, head_dim=128, vocab_size=151936),
    "Qwen3-0.6B": Qwen3Config(
        **sized(1024, 3072, 28, 16), num_key_value_heads=8, head_dim=128, tie_word_embeddings=True
    ),
    "Qwen3-30B-A3B": Qwen3MoeConfig(
        **sized(2048, 6144, 48, 32),
        num_key_value_heads=4,
        head_dim=128,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        vocab_size=151936,
    ),
    "Mixtral-8x7B": MixtralConfig(**sized(4096, 14336, 32, 32), num_key_value_heads=8, num_local_experts=8),
    "Mistral-Small-24B": MistralConfig(
        **sized(5120, 32768, 40, 32),
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=131072,
        sliding_window=None,
    ),
    "Mistral-7B-v0.1": MistralConfig(**sized(4096, 14336, 32, 32), num_key_value_heads=8, sliding_window=4096),
    "Gemma-2-9b": Gemma2Config(
        **sized(3584, 14336, 42, 16),
        num_key_value_heads=8,
        head_dim=256,
        vocab_size=256000,
        sliding_window=4096,
        query_pre_attn_scalar=256,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    "Gemma-3-27b, text": Gemma3TextConfig(
        **sized(5376, 21504, 62, 32),
        num_key_value_heads=16,
        head_dim=128,
        vocab_size=262208,
        sliding_window=1024,
        query_pre_attn_scalar=168,
    ),
    "Gemma-3-27b": Gemma3Config(
        text_config=sized(5376, 21504, 62, 32, num_key_value_heads=16, head_dim=128, sliding_window=1024),
        vision_config=sized(1152, 4304, 27, 16, image_size=896, patch_size=14),
    ),
    "Gemma-4-E2B, text": Gemma4TextConfig(
        **sized(1536, 6144, 35, 8),
        num_key_value_heads=1,
        num_kv_shared_layers=20,
        use_double_wide_mlp=True,
        final_logit_softcapping=30.0,
    ),
    "Phi-3-mini-128k": Phi3Config(
        **sized(3072, 8192, 32, 32),
        num_key_value_heads=32,
        vocab_size=32064,
        pad_token_id=32000,
        sliding_window=262144,
        rope_parameters=longrope(48),
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
    ),
    "Phi-4-mini": Phi3Config(
        **sized(3072, 8192, 32, 24),
        num_key_value_heads=8,
        vocab_size=200064,
        pad_token_id=199999,
        rope_parameters=longrope(48) | {"partial_rotary_factor": 0.75},
        partial_rotary_factor=0.75,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        tie_word_embeddings=True,
    ),
    "Phi-4": Phi3Config(**sized(5120, 17920, 40, 40), num_key_value_heads=10, vocab_size=100352, pad_token_id=100349),
    "OLMo-2-7B": Olmo2Config(**sized(4096, 11008, 32, 32), num_key_value_heads=32, vocab_size=100352),
    "Olmo-3-7B": Olmo3Config(
        **sized(4096, 11008, 32, 32), num_key_value_heads=32, vocab_size=100278, sliding_window=4096
    ),
    "SmolLM3-3B": SmolLM3Config(**sized(2048, 11008, 36, 16), num_key_value_heads=4, vocab_size=128256),
    "DeepSeek-V3": DeepseekV3Config(rope_parameters=YARN),  # these are its defaults: 61 layers of 7168, 256 experts
    "Granite-3.3-8b": GraniteConfig(
        **sized(4096, 12800, 40, 32),
        num_key_value_heads=8,
        vocab_size=49159,
        attention_multiplier=0.0078125,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        logits_scaling=16.0,
        tie_word_embeddings=True,
    ),
    "command-r": CohereConfig(**sized(8192, 22528, 40, 64), num_key_value_heads=64, logit_scale=0.0625),
    "command-r7b": Cohere2Config(**sized(4096, 14336, 32, 32), num_key_value_heads=8, logit_scale=0.25),
    "phi-2": PhiConfig(**sized(2560, 10240, 32, 32), partial_rotary_factor=0.4, vocab_size=51200),
    "opt-13b": OPTConfig(
        hidden_size=5120, ffn_dim=20480, num_hidden_layers=40, num_attention_heads=40, word_embed_proj_dim=5120
    ),
    "pythia-12b": GPTNeoXConfig(**sized(5120, 20480, 36, 40), vocab_size=50688),
    "HRM, whose cycles make much of rounding": HrmTextConfig(),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "gpt-oss-120b": GptOssConfig(num_hidden_layers=36, num_local_experts=128),
}
NO_INTERFACE = "not reached by transformers' attention interface"
APART: dict[str, tuple[PreTrainedConfig, str]] = {
    "falcon-40b": (
        FalconConfig(
            hidden_size=8192,
            num_hidden_layers=60,
            num_attention_heads=128,
            num_kv_heads=8,
            vocab_size=65024,
            new_decoder_architecture=True,
        ),
        NO_INTERFACE,
    ),
    "falcon-rw-1b": (
        FalconConfig(hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, alibi=True),
        NO_INTERFACE,
    ),
    "gpt-j-6b": (GPTJConfig(), NO_INTERFACE),
    "bloom-7b1": (BloomConfig(hidden_size=4096, n_layer=30, n_head=32, vocab_size=250880), NO_INTERFACE),
    "mamba-2.8b": (MambaConfig(hidden_size=2560, num_hidden_layers=64), NO_INTERFACE),
    "stablelm-12b": (
        StableLmConfig(**sized(5120, 13824, 40, 32), num_key_value_heads=8, qk_layernorm=True),
        NO_INTERFACE,
    ),
    "jamba, whose layers no list tells apart": (JambaConfig(), NO_INTERFACE),
    "Qwen3-Next": (Qwen3NextConfig(), NO_INTERFACE),
    "LFM2, with layers of convolutions": (
        Lfm2Config(full_attn_idxs=[2, 5], num_hidden_layers=6),
        "layers of type conv",
    ),
}
REFUSED: dict[str, tuple[PreTrainedConfig, str]] = {
    "Falcon-H1, whose head has a multiplier": (FalconH1Config(lm_head_multiplier=0.04), "log-probs would be off by"),
    "ModernBERT, which has a layer before its head": (ModernBertDecoderConfig(), "log-probs would be off by"),
    "BERT, which looks ahead": (BertConfig(), "log-probs would be off by"),
}


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The whole model without weights: what there is before any is loaded."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


@pytest.mark.parametrize("name", SHARES)
def test_real_architectures_share_prompts(name: str) -> None:
    model = skeleton(SHARES[name])
    assert why_apart(model, name) is None
    assert all(weight.is_meta for weight in model.parameters())
    assert (
        sum(weight.numel() for weight in next(miniatures(model)).parameters()) < 4e7
    )  # a layer of the tower for images


@pytest.mark.parametrize("name", APART)
def test_real_architectures_that_are_computed_apart(name: str) -> None:
    config, reason = APART[name]
    assert reason in (why_apart(skeleton(config), name) or "")


@pytest.mark.parametrize("name", REFUSED)
def test_other_ways_from_ids_to_logits_are_refused(name: str) -> None:
    config, reason = REFUSED[name]
    with pytest.raises(RecipeError, match=f"in a way that is not supported: {reason}"):
        why_apart(skeleton(config), name)


def test_a_miniature_is_the_same_each_time_and_takes_no_random_numbers_from_others() -> None:
    model = skeleton(SHARES["Qwen3-8B"])
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second = (next(miniatures(model)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(*both) for both in zip(first.parameters(), second.parameters(), strict=True))
    assert {weight.dtype for weight in first.parameters()} == {torch.float32}
    assert all(weight.std() > 0.05 for weight in first.parameters())


def test_a_miniature_has_a_layer_of_each_kind() -> None:
    small = shrink(SHARES["Gemma-3-27b, text"])
    assert (small.layer_types, small.sliding_window) == (["sliding_attention", "full_attention"], 4)
    small = shrink(SHARES["DeepSeek-V3"])
    assert (small.num_hidden_layers, small.first_k_dense_replace) == (2, 1)
    small = shrink(SHARES["SmolLM3-3B"])
    assert small.no_rope_layers == [1, 0]
    window = Qwen2Config(use_sliding_window=True, sliding_window=4096, max_window_layers=20, num_hidden_layers=28)
    assert shrink(window).layer_types == ["full_attention", "sliding_attention"]
    # No list of Jamba's says which of its layers have attention, so all are kept.
    assert next(miniatures(skeleton(JambaConfig()))).config.num_hidden_layers == 32


def test_bfloat16_shares_prompts(smollm2: Path) -> None:
    assert load(str(smollm2), "bfloat16", 256).shares_prompts


class OfOneSize(LlamaForCausalLM):
    def __init__(self, config: LlamaConfig):
        if config.hidden_size != 40:
            raise ValueError("no other size")
        super().__init__(config)


class OfOneSizeAndScaled(OfOneSize):
    def forward(self, *inputs: object, **named: object) -> object:
        output = super().forward(*inputs, **named)
        output.logits = 1.1 * output.logits
        return output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_model_that_cannot_be_made_small_is_asked_itself(dtype: torch.dtype) -> None:
    """In float32 it is tried as its miniature would be; in less, only its head is looked at, and nothing is shared."""
    config = LlamaConfig(**sized(40, 64, 2, 2), vocab_size=64, dtype=dtype)
    torch.manual_seed(0)
    assert wrap(OfOneSize._from_config(deepcopy(config)), "odd").shares_prompts == (dtype == torch.float32)
    with pytest.raises(RecipeError, match=r"odd \(OfOneSizeAndScaled\) .* not supported: log.* would be off by"):
        wrap(OfOneSizeAndScaled._from_config(deepcopy(config)), "odd")


class Capped(Gemma2ForCausalLM):
    _supports_attention_backend = False


def test_a_soft_cap_that_the_model_s_own_attention_leaves_out_is_not_lost() -> None:
    """Apart, transformers' SDPA would compute without it, and say nothing."""
    config = Gemma2Config(**sized(32, 64, 2, 2), vocab_size=64, num_key_value_heads=1, head_dim=16)
    config.attn_logit_softcapping = 2.0
    model = Capped._from_config(deepcopy(config))
    model.set_attn_implementation("sdpa")
    with pytest.raises(RecipeError, match=r"Capped\) .* not supported: log-probs would be off by"):
        why_apart(model.eval(), "capped")
    ours = wrap(model, "capped")
    assert not ours.shares_prompts
    assert ours.causal_lm.config._attn_implementation == "eager"


def test_a_base_model_without_hidden_states_is_refused() -> None:
    config = Llama4TextConfig(
        **sized(32, 64, 2, 2), vocab_size=64, pad_token_id=0, num_local_experts=2, num_key_value_heads=2, head_dim=16
    )
    with pytest.raises(RecipeError, match="not supported: its base model does not give what its head takes"):
        wrap(AutoModelForCausalLM.from_config(config), "other")


def test_a_model_without_a_head_over_its_vocabulary_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sized(32, 64, 2, 2), vocab_size=64))
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(RecipeError, match=r"other \(LlamaForCausalLM\) has no linear head over its vocabulary"):
        wrap(model, "other")


class WrongInBfloat16(LlamaForCausalLM):
    """As where a kernel that float32 does not take looks one token too far back."""

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.model.register_forward_pre_hook(self._look_elsewhere, with_kwargs=True)

    @staticmethod
    def _look_elsewhere(model: nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
        stretches = named.get("stretches")
        if stretches is None or model.dtype == torch.float32:
            return inputs, named
        return inputs, named | {"stretches": replace(stretches, shared=tuple(max(n - 1, 0) for n in stretches.shared))}


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Mistral-7B-v0.1", "Gemma-2-9b", "Qwen3-30B-A3B", "gpt2-xl"])
def test_kernels_of_another_precision_are_tried(name: str) -> None:
    check_kernels(skeleton(SHARES[name]), name, torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize(("name", "routes"), [("Qwen3-30B-A3B", True), ("DeepSeek-V3", True), ("Qwen3-8B", False)])
def test_routers_are_known(name: str, routes: bool) -> None:
    assert PairLogprobs(skeleton(SHARES[name])).routes == routes


def test_a_kernel_that_is_wrong_in_another_precision_is_refused() -> None:
    with torch.device("meta"):
        model = WrongInBfloat16(LlamaConfig(**sized(64, 128, 2, 2)))
    check_kernels(model, "odd", torch.device("cpu"), torch.float32)
    with pytest.raises(RecipeError, match=r"odd \(WrongInBfloat16\) in torch\.bfloat16 on cpu: .* kernels .* at fault"):
        check_kernels(model, "odd", torch.device("cpu"), torch.bfloat16)


def test_the_decoders_layers_are_found_beside_longer_lists() -> None:
    """Experts that a class keeps as a list, and a tower for images with more layers than the decoder has."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sized(32, 64, 2, 2)))
        model.model.layers[0].mlp.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(5))
        text, tower = sized(32, 64, 2, 2), sized(32, 64, 4, 2, image_size=56, patch_size=14)
        with_tower = AutoModelForCausalLM.from_config(Gemma3Config(text_config=text, vision_config=tower))
    assert PairLogprobs(model).layers is model.model.layers
    assert not PairLogprobs(model).routes
    assert PairLogprobs(with_tower).layers is with_tower.get_decoder().layers
