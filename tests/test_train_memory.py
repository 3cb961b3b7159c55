"""What trades memory for time or workers changes nothing; adapters train what they say. Most of it in this process."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from peft import PeftModel
from ranks import train_on
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from stages.artifacts import PolicyCheckpoint
from stages.errors import RecipeError
from stages.train.config import Lora, TrainConfig, TrainResources
from stages.train.job import Job
from stages.train.pairs.batch import Batch
from stages.train.trainer import Trainer

STEPS = 3
Result = tuple[list[dict[str, float]], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def untied_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Embedding and head are two weights, each a unit of its own under FSDP."""
    folder = tmp_path_factory.mktemp("untied")
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=256, tie_word_embeddings=False,
        initializer_range=0.2, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def config_of(policy: Path, **fields: object) -> TrainConfig:
    """Another model than the reference may be trained on its log-probs; here that saves a score stage."""
    shape = {"global_batch": 5, "max_steps": STEPS, "lr": 1e-3, "starts_at_reference": False}
    return TrainConfig(policy=str(policy), **shape | fields)


def run_alone(config: TrainConfig, inputs: tuple, out: Path, **resources: object) -> Result:
    out.mkdir(parents=True)
    trainer = Trainer(Job(config, TrainResources(**resources), *inputs, out, 128))
    metrics = [trainer.step(step, STEPS) for step in range(1, STEPS + 1)]
    return metrics, get_model_state_dict(trainer.model, options=StateDictOptions(full_state_dict=True))


def assert_same(result: Result, expected: Result) -> None:
    for mine, theirs in zip(result[0], expected[0], strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=2e-5), name
    assert result[1].keys() == expected[1].keys()
    for name, weight in expected[1].items():
        # AdamW moves each by up to 1e-3 a step, and where a gradient is nearly 0, its rounding decides by how much.
        assert (result[1][name] - weight).square().mean().sqrt() < 2e-5, name


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "resources",
    [
        {"max_tokens_per_microbatch": 1},
        {"activation_checkpointing": "selective"},
        {"activation_checkpointing": "layer"},
        {"compile": True},
        {"compile": True, "activation_checkpointing": "layer"},
        {"cpu_offload": True},
    ],
    ids=str,
)
def test_memory_is_traded_for_time_alone(resources: dict, inputs: tuple, untied_model: Path, tmp_path: Path) -> None:
    config = config_of(untied_model)
    expected = run_alone(config, inputs, tmp_path / "plain")
    assert_same(run_alone(config, inputs, tmp_path / "traded", **resources), expected)


@pytest.mark.usefixtures("alone")
def test_layers_keep_less(inputs: tuple, untied_model: Path, tmp_path: Path) -> None:
    """Elements that the forward pass keeps for the backward pass, checkpointed; and those of the feed-forward layers,
    compiled."""
    kept, inner = {}, {}
    for mode, resources in {
        "plain": TrainResources(),
        "layer": TrainResources(activation_checkpointing="layer"),
        "compiled": TrainResources(compile=True),
    }.items():
        folder = tmp_path / mode
        folder.mkdir()
        trainer = Trainer(Job(config_of(untied_model), resources, *inputs, folder, 128))
        batch = Batch.of(trainer.pairs.read(np.arange(5)), trainer.model, trainer.device)
        weights = {weight.data_ptr() for weight in trainer.model.parameters()}
        found: dict[int, torch.Tensor] = {}

        def note(
            tensor: torch.Tensor, found: dict[int, torch.Tensor] = found, weights: set[int] = weights
        ) -> torch.Tensor:
            if tensor.is_floating_point() and tensor.data_ptr() not in weights:
                found[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            trainer.model(batch.layout)
        kept[mode] = sum(tensor.numel() for tensor in found.values())
        inner[mode] = sum(tensor.shape[-1] == 128 for tensor in found.values())  # the model's intermediate_size
    assert kept["plain"] > 5 * kept["layer"] > 0
    assert inner["plain"] > inner["compiled"] == 2 * 3  # gate and up of 3 layers, and not what down is given


@pytest.mark.usefixtures("alone")
def test_embedding_and_head_as_units_of_their_own(inputs: tuple, untied_model: Path, tmp_path: Path) -> None:
    """Two workers under FSDP, checkpointed, against one that shards nothing."""
    config = config_of(untied_model)
    metrics, weights = run_alone(config, inputs, tmp_path / "alone")
    resources = TrainResources(activation_checkpointing="layer", max_tokens_per_microbatch=100)
    train_on(Job(config, resources, *inputs, tmp_path / "two", 128), world=2)
    sharded = PolicyCheckpoint(tmp_path / "two")
    exported = {f"causal_lm.{name}": w for name, w in load_file(sharded.policy / "model.safetensors").items()}
    assert_same((sharded.metrics[1:], exported), (metrics, weights))


def test_adapters_are_trained_and_the_base_is_not(inputs: tuple, tiny_model: Path, tmp_path: Path) -> None:
    lora = Lora(rank=4, alpha=8, targets=["q_proj", "down_proj"], merge=True)
    config = config_of(tiny_model, lora=lora, lr=2e-2, max_steps=6, starts_at_reference=True)
    train_on(Job(config, TrainResources(), *inputs, tmp_path, 128), world=2)
    result = PolicyCheckpoint(tmp_path)
    assert result.metrics[1]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # adapters change nothing at first
    assert result.metrics[1]["check/ref_drift"] < 1e-4
    assert result.metrics[-1]["loss"] < 0.95 * result.metrics[1]["loss"]

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(result.policy)(ids).logits
    assert (adapted - before).abs().max() > 0.01
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)

    old, new = load_file(tiny_model / "model.safetensors"), load_file(result.policy / "model.safetensors")
    changed = {name for name, weight in old.items() if not torch.equal(weight, new[name])}
    assert changed == {name for name in old if "q_proj" in name or "down_proj" in name}
    (checkpoint,) = (tmp_path / "checkpoints").glob("step-*")
    saved = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    weights = [name for name in saved if name.startswith("model.")]
    assert weights
    assert all("lora_" in name for name in weights)


def test_frozen_weights_stay(inputs: tuple, untied_model: Path, tmp_path: Path) -> None:
    """On two ranks: they are in the export, and in no checkpoint."""
    config = config_of(untied_model, freeze=["*.mlp.*", "lm_head.weight"])
    train_on(Job(config, TrainResources(), *inputs, tmp_path, 128), world=2)
    old, new = load_file(untied_model / "model.safetensors"), load_file(tmp_path / "policy" / "model.safetensors")
    frozen = {name for name in old if ".mlp." in name or name == "lm_head.weight"}
    assert {name for name, weight in old.items() if torch.equal(weight, new[name])} == frozen
    (checkpoint,) = (tmp_path / "checkpoints").glob("step-*")
    saved = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    assert {name.removeprefix("model.causal_lm.") for name in saved if name.startswith("model.")} == old.keys() - frozen


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["*.gate.*"], r"no weight's name matches \*\.gate\.\*; there are .*up_proj"),
        (["*"], "leaves no weight to train"),
    ],
)
def test_patterns_that_freeze_nothing_or_all(
    patterns: list[str], message: str, inputs: tuple, untied_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        run_alone(config_of(untied_model, freeze=patterns), inputs, tmp_path / "out")


@pytest.mark.usefixtures("alone")
def test_adapters_go_to_all_linear_layers_but_the_head(inputs: tuple, untied_model: Path, tmp_path: Path) -> None:
    trainer = Trainer(Job(config_of(untied_model, lora=Lora(rank=2)), TrainResources(), *inputs, tmp_path, 128))
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert len(trained) == 3 * 7 * 2  # layers, projections of attention and feed-forward, A and B
    assert not any("lm_head" in name for name in trained)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "query"], r"no linear layer is named query; there are .*down_proj.*q_proj"),
        (["lm_head"], "must not name the head"),
    ],
)
def test_adapters_on_what_is_not_there(
    targets: list[str], message: str, inputs: tuple, untied_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        run_alone(config_of(untied_model, lora=Lora(targets=targets)), inputs, tmp_path / "out")
