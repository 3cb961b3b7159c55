"""What `plan` says of memory: a worked table, sizes of real models, what is advised."""

from pathlib import Path

import pytest
from conftest import ROOT
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.look import look as look_at_all
from pipeline.recipe.sections import Cluster
from stages.train.config import Lora, TrainConfig, TrainResources
from stages.train.memory.bill import base, bill, head, moments, units
from stages.train.memory.look import look
from stages.train.memory.sizes import Sizes, from_config, sizes_of

LLAMA = {"num_key_value_heads": 8, "tie_word_embeddings": False}
SHAPES = {
    "8B": LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"vocab_size": 128256},
    "32B": LLAMA
    | {"hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64, "num_attention_heads": 64}
    | {"head_dim": 128, "vocab_size": 151936},
    "70B": LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    | {"vocab_size": 128256},
    "30B-A3B": {"num_key_value_heads": 4, "tie_word_embeddings": False, "hidden_size": 2048, "num_hidden_layers": 48}
    | {"intermediate_size": 6144, "num_attention_heads": 32, "head_dim": 128, "vocab_size": 151936}
    | {"num_experts": 128, "moe_intermediate_size": 768, "num_experts_per_tok": 8},
}
# GB a GPU: shards of a full run on 8 and on 64, of one with moments in 8 bits; of a base in bfloat16 on 8, and in four
# bits on 1; gathered layers, and the head.
TABLE = {
    "8B": (16, 2.0, 10, 1.3, 2.0, 5.8, 3, 6),
    "32B": (66, 8.2, 41, 5.2, 8.2, 20, 7, 9),
    "70B": (141, 18, 89, 11, 18, 41, 12, 13),
    "30B-A3B": (61, 7.6, 39, 4.8, 7.6, 17, 9, 4),
}


def sizes(name: str) -> Sizes:
    found = from_config(SHAPES[name])
    assert found is not None
    return found


@pytest.mark.parametrize("name", TABLE)
def test_large_models_on_8_and_64_gpus(name: str) -> None:
    """Worked out by hand, to two digits: 16 and 10.1 bytes a weight, 14 a gathered weight, 12 one of the head."""
    found = []
    for optimizer in ("adamw", "adamw_8bit"):
        for workers in (8, 64):
            config = TrainConfig(policy="-", dtype="bfloat16", optimizer=optimizer)
            told = bill(sizes(name), config, TrainResources(workers=workers, gpus_per_worker=1), 4096)
            found.append(told.weights + told.gradients + told.optimizer)
    found += [base(sizes(name), 2, False) / 8, base(sizes(name), 2, True)]
    found += [units(sizes(name), 2, trains_all=True), head(sizes(name), 2, True, tokens=0, alone=False)]
    for got, wanted in zip(found, TABLE[name], strict=True):
        assert got / 1e9 == pytest.approx(wanted, rel=0.03, abs=0.5)
    assert moments("adamw_8bit") == pytest.approx(2, abs=0.05)


def test_copies_cost_what_fewer_workers_do() -> None:
    config, both = TrainConfig(policy="-"), []
    for fields in ({"workers": 8}, {"workers": 64, "shard_size": 8}):
        both.append(bill(sizes("8B"), config, TrainResources(**fields), 4096))
    assert both[0] == both[1]


def test_sizes_are_those_of_the_files(smollm2: Path, tiny_model: Path) -> None:
    for folder in (smollm2, tiny_model):
        by_files, config = sizes_of(str(folder)), AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_config(config)
        assert by_files is not None
        assert by_files.params == sum(weight.numel() for weight in model.parameters())
        assert by_files.layer == sum(weight.numel() for weight in model.model.layers[0].parameters())
        assert by_files == from_config(config.to_dict())
    assert from_config({"vocab_size": 100, "state_size": 4}) is None


def test_what_makes_it_fit_is_said() -> None:
    """A warning where there is too little; each of the ways takes less than there is."""
    model = str(ROOT / ".models" / "SmolLM2-135M-Instruct")
    config, resources = TrainConfig(policy=model), TrainResources(max_tokens_per_microbatch=16384)
    (line,) = look(config, resources.model_copy(update={"memory_gb": 99.0}), 1024, True)
    assert line.startswith("train takes about ")
    assert " GB of each worker, of 1, in full micro-batches of 16,384 tokens: weights 0.538, gradients 0.538, " in line
    total = float(line.split()[3])
    _, warning = look(config, resources.model_copy(update={"memory_gb": total / 2}), 1024, True)
    told, _, ways = warning.partition(" Any of these makes it fit: ")
    assert told == f"Warning: train takes about {total:g} GB of each worker, and there are {total / 2:.3g} GB."
    said = {way.split(" (")[0]: float(way.split("(")[1].split()[0]) for way in ways.split("; ")}
    assert said.keys() == {
        "cluster.train.activation_checkpointing=layer",
        "cluster.train.max_tokens_per_microbatch=4096",
    }
    for change, wanted in said.items():
        assert wanted <= total / 2
        field, value = change.removeprefix("cluster.train.").split("=")
        made = TrainResources.model_validate(resources.model_dump() | {field: int(value) if value.isdigit() else value})
        assert float(look(config, made, 1024, False)[0].split()[3]) == wanted
    _, warning = look(config, resources.model_copy(update={"memory_gb": 0.6}), 1024, True)
    assert warning.endswith("No field alone makes it fit: add workers")
    lora = TrainConfig(policy=model, lora=Lora(rank=8))
    assert "optimizer" not in look(lora, resources, 1024, False)[0]


def test_plan_tells_of_memory(trained: object) -> None:
    """Where training is still to be done; of nothing where all is made."""
    steps = list(trained.plan("train.lr=2e-3").values())  # type: ignore[attr-defined]
    assert any(line.startswith("train takes about ") for line in look_at_all(steps, Cluster()))
    (warning,) = [
        line
        for line in look_at_all(steps, Cluster(train=TrainResources(memory_gb=0.01)))
        if line.startswith("Warning: train takes")
    ]
    assert "there are 0.01 GB" in warning
    assert look_at_all(list(trained.plan().values()), Cluster()) == []  # type: ignore[attr-defined]
