"""What tests share: a tiny random model with a real tokenizer, SmolLM2, and one Ray cluster for the session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster import runtime_env
from pipeline.recipe import Cluster

ROOT = Path(__file__).parents[1]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a hub
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"


def make_tokenizer(folder: Path, chat_template: str | None = CHATML) -> None:
    """A byte-level BPE of 256 bytes and a few words, saved as a Hugging Face tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["the weather is good and the weather is bad, user and assistant say so"] * 4,
        vocab_size=320,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers with its tokenizer: head dimension 32, the least that vLLM takes; 256 positions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    make_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The one real model, as `make` puts it there."""
    folder = ROOT / ".models" / "SmolLM2-135M-Instruct"
    assert folder.is_dir(), "run `make test`, or infra/demo/smollm2.py first"
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One cluster for all tests; its address, for command lines that connect to it."""
    import ray

    context = ray.init(num_cpus=2, runtime_env=runtime_env(Cluster()), log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield context.address_info["gcs_address"]
    ray.shutdown()
