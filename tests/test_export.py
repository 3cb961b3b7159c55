"""The exported folder: files of bounded size that transformers loads, for every architecture we claim."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_logps import CONFIGS, make
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, MixtralConfig

from stages.logps.reading.loading import wrap
from stages.train.config import TrainConfig
from stages.train.policy.export import export_policy

pytestmark = pytest.mark.usefixtures("alone")

EXPERTS = MixtralConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=16, num_local_experts=3, max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip


@pytest.mark.parametrize("architecture", [*CONFIGS, "mixtral"])
def test_what_is_exported_loads_as_it_was(architecture: str, tiny_model: Path, tmp_path: Path) -> None:
    """Tied weights stand once, experts are cut and named as their authors do."""
    model = make((CONFIGS | {"mixtral": EXPERTS})[architecture])
    model.generation_config = GenerationConfig(temperature=0.25, do_sample=True)
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    export_policy(tmp_path, wrap(model, architecture), TrainConfig(policy=str(tiny_model)), file_bytes=20_000)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(make((CONFIGS | {"mixtral": EXPERTS})[architecture]))
    state = loaded.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], weight) for name, weight in expected.items())
    assert loaded.generation_config.temperature == 0.25
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template


def test_files_are_no_larger_than_asked(tiny_model: Path, tmp_path: Path) -> None:
    model = wrap(AutoModelForCausalLM.from_pretrained(tiny_model), "tiny")
    config = TrainConfig(policy=str(tiny_model), export_dtype="bfloat16")
    export_policy(tmp_path, model, config, file_bytes=50_000)
    files = [load_file(path) for path in sorted(tmp_path.glob("model-*.safetensors"))]
    assert len(files) > 1
    assert all(len(file) == 1 or sum(tensor.nbytes for tensor in file.values()) <= 50_000 for file in files)
    count = sum(weight.numel() for weight in model.parameters())
    assert sum(tensor.nbytes for file in files for tensor in file.values()) == 2 * count
    assert len(files) <= math.ceil(2 * count / 50_000) + 3
    export_policy(tmp_path, model, config)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
