"""Models of random weights and pairs of random ids, at the size that a device is for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from stages import schema
from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.score.config import ScoreConfig, ScoreResources
from stages.score.torch_scorer import TorchScorer
from tests.benchmarks.inputs import finish_logprobs, finish_pairs

Pair = tuple[list[int], list[int], list[int]]


@dataclass(frozen=True)
class Sizes:
    hidden: int
    layers: int
    heads: int
    vocabulary: int
    prompt: int  # tokens at most; as many of a completion
    pairs: int

    @classmethod
    def of(cls, device: torch.device) -> "Sizes":
        return cls(1024, 8, 16, 32_000, 400, 16) if device.type == "cuda" else cls(64, 2, 4, 300, 14, 6)

    @property
    def head(self) -> int:
        return self.hidden // self.heads


def configs(sizes: Sizes) -> dict[str, PreTrainedConfig]:
    common: dict[str, Any] = {
        "vocab_size": sizes.vocabulary, "hidden_size": sizes.hidden, "intermediate_size": 2 * sizes.hidden,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads, "max_position_embeddings": 2048,
        "initializer_range": 0.05, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    grouped = common | {"num_key_value_heads": sizes.heads // 2, "head_dim": sizes.head}
    window, rope = sizes.prompt // 2, sizes.head // 2
    return {
        "llama": LlamaConfig(**grouped),
        "mistral, with a window": MistralConfig(**grouped, sliding_window=window),
        "gemma2, with caps": Gemma2Config(**grouped, sliding_window=window, attn_logit_softcapping=5.0),
        "deepseek3, whose values are smaller than its keys": DeepseekV3Config(
            **common, num_key_value_heads=sizes.heads, q_lora_rank=sizes.hidden // 2, kv_lora_rank=sizes.hidden // 4,
            qk_nope_head_dim=sizes.head, qk_rope_head_dim=rope, v_head_dim=sizes.head,
            first_k_dense_replace=sizes.layers, n_routed_experts=2, num_experts_per_tok=1, n_group=1, topk_group=1,
            moe_intermediate_size=sizes.hidden,
        ),
    }  # fmt: skip


def save_model(config: PreTrainedConfig, folder: Path) -> Path:
    """Random weights, in float32, and a tokenizer that nobody asks."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b").save_pretrained(folder)
    return folder


def random_pairs(sizes: Sizes) -> list[Pair]:
    """Lengths up to the largest; the completions of every other pair begin alike."""
    chance = np.random.default_rng(0)

    def ids(most: int) -> list[int]:
        return chance.integers(2, sizes.vocabulary, chance.integers(most // 2, most + 1)).tolist()

    pairs = []
    for number in range(sizes.pairs):
        start = ids(sizes.prompt // 4) if number % 2 else []
        pairs.append((ids(sizes.prompt), start + ids(sizes.prompt), start + ids(sizes.prompt // 2)))
    return pairs


def artifacts(
    work: Path, pairs: list[Pair], model: Path, dtype: str, device: torch.device
) -> tuple[PreferencePairs, ReferenceLogprobs]:
    """The pairs, and their log-probs by the torch scorer in `dtype` on `device`, each as a finished artifact."""
    rows = [
        {
            "pair_id": f"{number:032x}", "split": "train", "weight": 1.0, "source": "-", "source_row": number,
            "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected,
            "chosen_trained": [0, len(chosen)], "rejected_trained": [0, len(rejected)],
        }
        for number, (prompt, chosen, rejected) in enumerate(pairs)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=schema.PAIRS)
    longest = max(len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in pairs)
    schema.write_part(table, work / "pairs" / "part-00000.parquet")
    finish_pairs(work, len(pairs), longest)
    config = ScoreConfig(model=str(model), backend="torch", dtype=dtype)
    scorer = TorchScorer(config, ScoreResources(gpus_per_actor=int(device.type == "cuda")), longest)
    schema.write_part(schema.logprobs_table(table, scorer.token_logps(table)), work / "logprobs" / "part-00000.parquet")
    finish_logprobs(work)
    return PreferencePairs(work / "pairs"), ReferenceLogprobs(work / "logprobs")
