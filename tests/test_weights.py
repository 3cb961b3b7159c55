"""Weights read by shards are those of `from_pretrained`, to the bit, and no rank holds more than its own."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from conftest import make_tokenizer
from peft import PeftModel
from ranks import together
from safetensors.torch import load_file, save_file
from test_logps import GROUPED, PAIRS, make
from test_lora import EXPERTS
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, OlmoHybridConfig, PreTrainedConfig

from pipeline.identity import Digests, model_identity
from stages.errors import RecipeError
from stages.logps.model import PairLogprobs
from stages.logps.nf4 import LEVELS
from stages.logps.reading.loading import describe, load, wrap
from stages.logps.reading.weights import _Slice, read_weights
from stages.model_files import base_of
from stages.train.config import Lora, TrainConfig, TrainResources
from stages.train.policy.build import build
from stages.train.policy.export import export_policy
from stages.train.policy.fsdp import shard_model
from stages.train.policy.mesh import Mesh

CPU = torch.device("cpu")
CONFIGS: dict[str, PreTrainedConfig] = EXPERTS | {
    "llama": LlamaConfig(**GROUPED),
    "llama, tied": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "llama, of four bits": LlamaConfig(**GROUPED | {"hidden_size": 64, "intermediate_size": 128}, attention_bias=True),
    "gpt_oss": GptOssConfig(**GROUPED, head_dim=16, num_local_experts=3, num_experts_per_tok=1, sliding_window=6),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved models, each under its name in CONFIGS, in two files and more."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        make(config).save_pretrained(folder / name, max_shard_size="30KB")
    make_tokenizer(folder / "llama, of four bits")
    return folder


def policy(folder: Path, shard_size: int | None = None, **fields: object) -> PairLogprobs:
    config = TrainConfig(policy=str(folder), **fields)
    resources = TrainResources(shard_size=shard_size, workers=dist.get_world_size())
    return build(config, resources, 64, Mesh("cpu", dist.get_world_size(), resources), CPU)


def assert_equal(folder: Path, lora: Lora | None, shard_size: int | None = None) -> None:
    model = policy(folder, shard_size, lora=lora)
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


def assert_lower_base(folder: Path) -> None:
    """Of a base under adapters only its values in the precision of computing are held; adapters are float32."""
    model = policy(folder, lora=Lora(rank=2), dtype="bfloat16")
    for name, weight in model.causal_lm.named_parameters():
        assert weight.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16), name
    whole = load(str(folder), "bfloat16", 64)
    with torch.no_grad():
        assert torch.equal(model(model.lay_out(PAIRS)), whole(whole.lay_out(PAIRS)))


def assert_four_bits(folder: Path, out: Path) -> None:
    """The scorer's numbers and a policy's at its start are those of the same rounded weights, and so is the export."""
    config = TrainConfig(policy=str(folder), quantize="nf4", lora=Lora(rank=2, merge=True))
    model = policy(folder, lora=config.lora, quantize="nf4")
    whole = load(str(folder), "float32", 64, quantize="nf4")
    rounded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, weight in rounded.named_parameters():
        if ".layers." in name and weight.ndim == 2:
            weight.data = rounded_to_levels(weight.data)
    expected = wrap(rounded, "rounded")
    layout = model.lay_out(PAIRS)
    with torch.no_grad():
        first = model(layout)
        torch.testing.assert_close(first, whole(layout), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(first, expected(layout), atol=1e-5, rtol=1e-5)
        adapters = {name: weight for name, weight in model.causal_lm.named_parameters() if weight.requires_grad}
        assert all(".lora_" in name for name in adapters)
        for name, weight in adapters.items():
            weight.fill_(0.03 if ".lora_A." in name else 0.02)
    held = {
        name: each for name, each in model.causal_lm.named_parameters() if ".layers." in name and name not in adapters
    }
    assert {each.dtype for each in held.values() if each.ndim == 2} == {torch.uint8, torch.bfloat16}
    model(layout).sum().backward()
    export_policy(out / "policy", model, config)
    merged = load(str(out / "policy"), "float32", 64)
    with torch.no_grad():
        torch.testing.assert_close(merged(layout), model(layout), atol=1e-5, rtol=1e-5)
    assert (merged(layout) - first).abs().max() > 1e-3  # the adapters are in it
    gradients = {name: each.grad for name, each in adapters.items()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())


def assert_starts_from_adapter(out: Path) -> None:
    """The export of `assert_four_bits` has an adapter beside its merged model: on its base it starts another policy."""
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base_of(str(out / "adapter")), dtype=torch.float32), out / "adapter"
    )
    expected = wrap(adapted.merge_and_unload(), "merged by peft")
    layout = expected.lay_out(PAIRS)
    model, whole = policy(out / "adapter", lora=Lora(rank=2)), load(str(out / "adapter"), "float32", 64)
    with torch.no_grad():
        torch.testing.assert_close(whole(layout), expected(layout), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(layout), whole(layout), atol=1e-6, rtol=1e-6)
    if dist.get_rank() == 0:
        weights = load_file(out / "adapter" / "adapter_model.safetensors")
        other = shutil.copytree(out / "adapter", out / "other")
        file = other / "adapter_model.safetensors"
        save_file({key.replace("layers.1", "layers.7"): weight for key, weight in weights.items()}, file)
        with pytest.raises(RecipeError, match=r"the adapter changes model\.layers\.7\..* no linear layers"):
            load(str(other), "float32", 64)
        first, second = (model_identity(str(each), Digests(None), "model")[1] for each in (out / "adapter", other))
        base = model_identity(base_of(str(other)), Digests(None), "model")[1]
        assert first != second
        assert first.endswith(f" on {base}")


def rounded_to_levels(weight: torch.Tensor) -> torch.Tensor:
    """The nearest of the levels times the largest of a block of 64, by its definition."""
    blocks = weight.unflatten(1, (-1, 64))
    largest = blocks.abs().amax(-1, keepdim=True).bfloat16().float()
    levels = torch.tensor(LEVELS)
    nearest = (blocks[..., None] / largest[..., None] - levels).abs().argmin(-1)
    return (levels[nearest] * largest).flatten(1)


def read_all(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    if dist.get_world_size() < 4:
        out = folder / f"four bits on {dist.get_world_size()}"
        assert_four_bits(folder / "llama, of four bits", out)
        assert_starts_from_adapter(out)
    for name in names:
        assert_equal(folder / name, None)
    assert_equal(folder / "mixtral", Lora(rank=2))
    assert_lower_base(folder / "llama")
    assert_equal(folder / "llama, tied", Lora(rank=2), 2 if dist.get_world_size() == 4 else None)


@pytest.mark.usefixtures("alone")
def test_one_rank_reads_what_from_pretrained_reads(folder: Path) -> None:
    read_all(folder, list(CONFIGS))


def test_two_ranks_read_what_from_pretrained_reads(folder: Path) -> None:
    together(2, read_all, folder, list(CONFIGS))


def test_more_ranks_than_experts_cut_them_by_their_width(folder: Path) -> None:
    together(4, read_all, folder, ["mixtral", "gpt_oss"])


HYBRID = OlmoHybridConfig(
    **GROUPED, layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2, linear_num_value_heads=2,
    linear_key_head_dim=8, linear_value_head_dim=8,
)  # fmt: skip
LARGE = LlamaConfig(
    vocab_size=8000, hidden_size=512, intermediate_size=1536, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=8, max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Bytes that this process has gained at the most, of memory that is no mapped file; looked at each millisecond."""
    peak, done = [0], threading.Event()

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

    def look() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], anonymous() - before)
            time.sleep(0.001)

    before = anonymous()
    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak[0] = max(peak[0], anonymous() - before)


@contextmanager
def bytes_read() -> Iterator[torch.Tensor]:
    """How many bytes of tensors this process has read from files."""
    read, take = torch.zeros(1, dtype=torch.int64), _Slice.__getitem__

    def count(self: _Slice, index: object) -> torch.Tensor:
        found = take(self, index)
        read.add_(found.nbytes)
        return found

    with patch.object(_Slice, "__getitem__", count):
        yield read


def read_large(folder: Path) -> None:
    torch.set_num_threads(1)
    hybrid = folder / "hybrid"
    with pytest.raises(
        RecipeError, match=r"cannot be read by shards: .*conv1d\.weight is made .* by Concatenate along"
    ):
        policy(hybrid)
    model = describe(str(folder / "large"), "float32", 64, CPU)
    shard_model(model, init_device_mesh("cpu", (2,)), "float32")
    with peak_memory() as peak, bytes_read() as read:
        read_weights(model.causal_lm, str(folder / "large"), CPU)
    dist.all_reduce(read)
    files = (folder / "large").glob("*.safetensors")
    assert read.item() == sum(weight.nbytes for file in files for weight in load_file(file).values())
    weights = list(model.parameters())
    shards = sum(weight.to_local().nbytes for weight in weights)
    assert 0.49 < shards / sum(weight.nbytes for weight in weights) < 0.51
    largest = max(weight.nbytes for weight in weights)
    assert 0.5 * shards < peak[0] < shards + 2 * largest, (peak[0] / 1e6, shards / 1e6, largest / 1e6)


def test_no_rank_holds_more_than_its_shards_and_a_piece_and_no_byte_is_read_twice(tmp_path: Path) -> None:
    make(LARGE).save_pretrained(tmp_path / "large", max_shard_size="20MB")
    make(HYBRID).save_pretrained(tmp_path / "hybrid")
    together(2, read_large, tmp_path)


def test_what_is_not_whole_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    """transformers would take random numbers for it, and say so in a line of the log."""
    damaged = shutil.copytree(folder / "llama, tied", tmp_path / "damaged")
    file = next(
        path for path in damaged.glob("*.safetensors") if "model.layers.1.mlp.up_proj.weight" in load_file(path)
    )
    whole = load_file(file)
    lacking = {name: weight for name, weight in whole.items() if "layers.1.mlp.up_proj" not in name}
    save_file(lacking, file, metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"model\.layers\.1\.mlp\.up_proj\.weight \(1 tensors\) are not in its files"):
        load(str(damaged), "float32", 64)
    save_file(whole | {"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 32)}, file, metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"up_proj\.weight is \[3, 32\] in its files, and \[64, 32\] by its config"):
        load(str(damaged), "float32", 64)


@pytest.mark.usefixtures("alone")
def test_files_that_are_no_safetensors_are_not_read(tmp_path: Path) -> None:
    model = make(CONFIGS["llama"])
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(RecipeError, match=r"is not in safetensors.*Convert it where that does no harm"):
        load(str(tmp_path), "float32", 64)
