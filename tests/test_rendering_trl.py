"""The same rows through TRL 1.16's tokenization: the same ids, but for what it trains on after the end of a turn."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
from chat_templates import byte_tokenizer
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from stages.shard.config import ShardConfig
from stages.shard.tokenization import Pair, Tokenizer
from stages.shard.triple import Triple

WORDS = ["tide", "oven", "rye-bread", "4.5", "the,", "is?", "«good»", "naïve", "日本", "and\nso", "x", "= 1", "NASA"]


def words(rng: random.Random, least: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, 30)))


def turn(rng: random.Random, role: str) -> dict[str, str]:
    return {"role": role, "content": words(rng, 1)}


def rows(shape: str, count: int = 200) -> tuple[list[dict[str, Any]], list[Triple]]:
    """As TRL reads them, and as we have parsed them."""
    rng, theirs, ours = random.Random(0), [], []
    for _ in range(count):
        if shape == "explicit":
            prompt, chosen, rejected = words(rng, 2), f" {words(rng, 2)}", f" not {words(rng, 2)}"
            theirs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        else:
            roles = ["system", "user", "assistant", "user"] if rng.random() < 0.5 else ["user"]
            prompt = [turn(rng, role) for role in roles]
            chosen, rejected = [turn(rng, "assistant")], [{"role": "assistant", "content": f"not {words(rng, 1)}"}]
            if shape == "implicit":
                theirs.append({"chosen": prompt + chosen, "rejected": prompt + rejected})
            else:
                theirs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        ours.append(Triple(prompt, chosen, rejected))
    return theirs, ours


def of_trl(rows: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, list[int]]]:
    args = DPOConfig(max_length=None, report_to=[], use_cpu=True, bf16=False)
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    made = DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, args, "train")
    return [{key: row[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in made]


# Family -> what TRL trains on after the end of a turn, at which every engine stops: white space that the template
# writes there, and for Phi the tokenizer's end token too.
AFTER = {"smollm2": "\n", "llama3": "", "gemma": "\n", "mistral": "", "phi": "\n<|endoftext|>", "qwen3": "\n"}


@pytest.mark.parametrize("shape", ["explicit", "conversational", "implicit"])
@pytest.mark.parametrize("family", AFTER)
def test_the_same_ids(shape: str, family: str, smollm2: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2) if family == "smollm2" else byte_tokenizer(family)
    after = [] if shape == "explicit" else tokenizer.encode(AFTER[family], add_special_tokens=False)
    theirs, ours = rows(shape)
    if family in ("gemma", "mistral"):  # their templates have no role for a system message
        kept = [n for n, row in enumerate(ours) if isinstance(row.prompt, str) or row.prompt[0]["role"] != "system"]
        theirs, ours = [theirs[n] for n in kept], [ours[n] for n in kept]
    made = Tokenizer(ShardConfig(source="x", tokenizer="/nowhere", max_length=4096), tokenizer).tokenize(ours)
    for pair, expected in zip(made, of_trl(theirs, tokenizer), strict=True):
        assert isinstance(pair, Pair)
        assert pair.prompt_ids == expected["prompt_ids"]
        assert pair.chosen_ids + after == expected["chosen_ids"]
        assert pair.rejected_ids + after == expected["rejected_ids"]
