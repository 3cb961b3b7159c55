"""What benchmarks give to the stages: pairs with the manifests of finished artifacts, and tiny models."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages import schema
from stages.artifacts import Manifest
from stages.model_files import is_tokenizer_file

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".models" / "SmolLM2-135M-Instruct"
HH = ROOT.parent / "shared" / "data" / "hh_harmless-base_test.jsonl.gz"


def hh_pairs(
    work: Path, model: Path, count: int, max_length: int, longest_answers: bool = False, parts: int = 1
) -> list[Any]:
    """Write the first `count` pairs of HH that fit, or those with the longest answers. Returns their triples."""
    from stages.shard.config import Columns, ShardConfig
    from stages.shard.tokenization import Tokenizer
    from stages.shard.triple import Malformed, Rejected, parse

    tokenizer = Tokenizer(ShardConfig(source="-", tokenizer=str(model), max_length=max_length, truncation="drop"))
    found = []
    with gzip.open(HH, "rt", encoding="utf-8") as lines:
        for row, line in enumerate(lines):
            try:
                (triple,) = parse(line, "hh", Columns())
                found.append((row, triple, tokenizer.one(triple)))
            except (Malformed, Rejected):
                continue
    if longest_answers:
        found.sort(key=lambda each: -min(len(each[2].chosen_ids), len(each[2].rejected_ids)))
    found = found[:count]
    rows = [
        {
            "pair_id": pair.pair_id,
            "split": "train",
            "prompt_ids": pair.prompt_ids,
            "chosen_ids": pair.chosen_ids,
            "rejected_ids": pair.rejected_ids,
            "chosen_trained": pair.chosen_trained,
            "rejected_trained": pair.rejected_trained,
            "weight": 1.0,
            "source": HH.name,
            "source_row": row,
        }
        for row, _, pair in found
    ]
    for part in range(parts):
        table = pa.Table.from_pylist(rows[part::parts], schema=schema.PAIRS)
        schema.write_part(table, work / "pairs" / f"part-{part:05d}.parquet")
    finish_pairs(work, count, max_length)
    return [triple for _, triple, _ in found]


def random_pairs(work: Path, count: int, tokens: tuple[int, int, int], rows_per_part: int, scored: bool = True) -> None:
    """Write pairs of random ids, of so many tokens a prompt, chosen and rejected; and random log-probs of them."""
    chance, sides = np.random.default_rng(0), ("prompt", *schema.PAIR_SIDES)

    def lists(values: np.ndarray) -> pa.ListArray:
        rows, width = values.shape
        return pa.ListArray.from_arrays(np.arange(0, rows * width + 1, width, dtype=np.int32), pa.array(values.ravel()))

    for part, start in enumerate(range(0, count, rows_per_part)):
        rows = min(rows_per_part, count - start)
        ids = pa.array([f"{number:032x}" for number in range(start, start + rows)])
        columns = {"pair_id": ids, "split": pa.array(["train"] * rows)}
        for side, width in zip(sides, tokens, strict=True):
            columns[f"{side}_ids"] = lists(chance.integers(5, 500, (rows, width), np.int32))
        for side, width in zip(schema.PAIR_SIDES, tokens[1:], strict=True):
            columns[f"{side}_trained"] = lists(np.tile(np.array([0, width], np.int32), (rows, 1)))
        columns["weight"] = pa.array(np.ones(rows, np.float32))
        columns |= {"margin": pa.nulls(rows, pa.float64()), "source": pa.array(["-"] * rows)}
        columns["source_row"] = pa.array(np.arange(start, start + rows))
        name = f"part-{part:05d}.parquet"
        schema.write_part(pa.table(columns, schema=schema.PAIRS), work / "pairs" / name)
        if not scored:
            continue
        logps = {side: -chance.random((rows, width), np.float32) for side, width in zip(sides, tokens, strict=True)}
        columns = {"pair_id": ids, "error": pa.nulls(rows, pa.string())}
        columns |= {f"ref_{side}_logps": pa.array(logps[side].sum(1).astype(float)) for side in schema.PAIR_SIDES}
        columns |= {f"ref_{side}_token_logps": lists(logps[side]) for side in schema.PAIR_SIDES}
        schema.write_part(pa.table(columns, schema=schema.LOGPROBS), work / "logprobs" / name)
    finish_pairs(work, count, longest=tokens[0] + max(tokens[1:]))
    if scored:
        finish_logprobs(work)


def finish_pairs(work: Path, count: int, longest: int) -> None:
    """The manifest that makes the parts a finished artifact."""
    facts = {"pairs": count, "train": count, "eval": 0, "longest": longest, "tokens": 0}
    Manifest("shard", "0" * 64, {}, [], facts, {}).write(work / "pairs")


def finish_logprobs(work: Path) -> None:
    facts = {"unscored": {"train": 0, "eval": 0}}
    Manifest("score", "1" * 64, {"inputs": {"pairs": "0" * 64}}, [], facts, {}).write(work / "logprobs")


def tiny_model(folder: Path) -> Path:
    """A random Llama of 2 layers, without a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def copy_tokenizer(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if is_tokenizer_file(path.name):
            shutil.copy(path, target)
