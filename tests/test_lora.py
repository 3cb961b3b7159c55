"""Which layers adapters go to, and that none is lost when they are merged."""

import pytest
import torch
from test_logps import GROUPED, SMALL, make
from transformers import DeepseekV3Config, MixtralConfig, PreTrainedConfig, Qwen3MoeConfig

from stages.errors import ContractError, RecipeError
from stages.train.config import Lora
from stages.train.policy.lora import add_adapters, draw_adapters, merge_adapters

EXPERTS: dict[str, PreTrainedConfig] = {
    "mixtral": MixtralConfig(**GROUPED, num_local_experts=3),
    "qwen3_moe, dense below": Qwen3MoeConfig(
        **GROUPED, head_dim=16, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=16, mlp_only_layers=[0]
    ),
    "deepseek_v3": DeepseekV3Config(
        **SMALL, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1,
        moe_intermediate_size=16, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
        first_k_dense_replace=1,
    ),
}  # fmt: skip
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
LATENT = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}


@pytest.mark.parametrize("architecture", EXPERTS)
def test_adapters_go_to_linear_layers_and_all_of_them_are_merged(architecture: str) -> None:
    """Experts and routers keep their weights: peft would adapt them for the names they once had, and none be merged."""
    model = make(EXPERTS[architecture])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    add_adapters(model, Lora(rank=4, alpha=6, rank_stabilized=True))
    draw_adapters(model, 0, torch.device("cpu"))
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in trained.values():
            weight.normal_()
    targets = LATENT if architecture == "deepseek_v3" else ATTENTION
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == targets
    assert len(trained) == 2 * 2 * len(targets)
    merged = merge_adapters(model, model.state_dict())
    assert merged.keys() == before.keys()
    for name, weight in before.items():
        layer = name.removesuffix(".weight")
        changed = torch.zeros_like(weight)
        if layer.rpartition(".")[2] in targets:
            a, b = (trained[f"{layer}.lora_{each}.default.weight"].detach() for each in "AB")
            changed = 3.0 * (b @ a)
            assert changed.abs().max() > 0.1
        torch.testing.assert_close(merged[name], weight + changed, msg=name)


@pytest.mark.parametrize("target", ["w1", "gate", "gate_up_proj", "experts"])
def test_experts_and_routers_are_refused(target: str) -> None:
    with pytest.raises(RecipeError, match=rf"targets: .*{target}.* there are k_proj, o_proj, q_proj, v_proj"):
        add_adapters(make(EXPERTS["mixtral"]), Lora(targets=["q_proj", target]))


def test_an_adapter_that_would_be_lost_is_refused() -> None:
    model = make(EXPERTS["mixtral"])
    add_adapters(model, Lora(rank=2))
    draw_adapters(model, 0, torch.device("cpu"))
    weights = model.state_dict()
    del weights["model.layers.1.self_attn.q_proj.base_layer.weight"]
    with pytest.raises(ContractError, match=r"adapters model\.layers\.1\.self_attn\.q_proj\.lora_A"):
        merge_adapters(model, weights)
