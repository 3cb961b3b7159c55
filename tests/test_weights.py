"""Weights read by shards are those of `from_pretrained`, to the bit, and no rank holds more than its own."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_on
from test_logps import GROUPED, PAIRS, make
from test_lora import EXPERTS
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, PreTrainedConfig

from stages.logps.loading import load
from stages.train.config import Lora, TrainConfig, TrainResources
from stages.train.policy.build import build

CPU = torch.device("cpu")
CONFIGS: dict[str, PreTrainedConfig] = EXPERTS | {
    "llama": LlamaConfig(**GROUPED),
    "llama, tied": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "gpt_oss": GptOssConfig(**GROUPED, head_dim=16, num_local_experts=3, num_experts_per_tok=1, sliding_window=6),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved models, each under its name in CONFIGS, in two files and more."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        make(config).save_pretrained(folder / name, max_shard_size="30KB")
    return folder


def policy(folder: Path, **fields: object) -> torch.nn.Module:
    config = TrainConfig(policy=str(folder), **fields)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return build(config, TrainResources(), 64, mesh, CPU)


def assert_equal(folder: Path, lora: Lora | None) -> None:
    model = policy(folder, lora=lora)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = {name.replace(".base_layer", ""): each for name, each in model.causal_lm.state_dict().items()}
    adapters = {name: weights.pop(name) for name in list(weights) if ".lora_" in name}
    assert bool(adapters) == (lora is not None)
    assert weights.keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        found = weights[name]
        if dist.get_world_size() > 1 and name in dict(expected.named_parameters()):
            assert isinstance(found, DTensor)
        assert torch.equal(found.full_tensor() if isinstance(found, DTensor) else found, weight), name
    buffers = dict(model.causal_lm.named_buffers())
    for name, buffer in expected.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    trained = {name for name, weight in model.causal_lm.named_parameters() if weight.requires_grad}
    assert trained == (set(adapters) or {name for name, _ in expected.named_parameters()})
    whole = load(str(folder), "float32", 64)  # plain parameters, as the torch scorer fills them
    with torch.no_grad():
        torch.testing.assert_close(model(model.lay_out(PAIRS)), whole(whole.lay_out(PAIRS)), atol=1e-6, rtol=1e-6)


def read_all(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        assert_equal(folder / name, None)
    assert_equal(folder / "mixtral", Lora(rank=2))
    assert_equal(folder / "llama, tied", Lora(rank=2))


@pytest.mark.usefixtures("alone")
def test_one_rank_reads_what_from_pretrained_reads(folder: Path) -> None:
    read_all(folder, list(CONFIGS))


def test_two_ranks_read_what_from_pretrained_reads(folder: Path) -> None:
    run_on(2, read_all, folder, list(CONFIGS))


def test_more_ranks_than_experts_cut_them_by_their_width(folder: Path) -> None:
    run_on(4, read_all, folder, ["mixtral", "gpt_oss"])
