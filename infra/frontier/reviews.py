"""Reviews of films -> what the scale `imdb` needs: sentences, prompts, a model to start from, and a judge.

The labelled reviews of `split: train` teach the classifier and those of `split: test` try it; no language model sees
either. Of the unlabelled ones, the first three quarters are what is learnt to be written, the others give prompts.
"""

import gzip
import json
import math
import re
import runpy
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_BEGUN = 4  # words that are a prompt
_SHORTEST, _LONGEST = 8, 24  # words of a sentence that is learnt
_SEEN_IN = 5  # reviews at least, that have a gram of the classifier
_PENALTY = 1.0  # of the squares of its weights, as scikit-learn's C


class Sizes(NamedTuple):
    sentences: int = 24_000
    prompts: int = 1_000
    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 4


def prepare(reviews: Path, recipes: Path, folder: Path, sizes: Sizes = Sizes()) -> dict[str, Any]:  # noqa: B008
    """Write all of it under `folder`, copies of the recipes among it, and say how good the classifier is.

    `reviews`: JSON lines, gzipped: `text`, `split` (train, test, unlabelled), `label` (1: positive, 0: not, or null).
    """
    facts = folder / "facts.json"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*recipes.glob("*.yaml"), recipes / "classifier.py"):
        shutil.copy(path, folder)
    if facts.exists():
        return json.loads(facts.read_text())
    with gzip.open(reviews, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    texts = {split: [row["text"] for row in rows if row["split"] == split] for split in ("train", "test", "unlabelled")}
    labels = {split: np.array([row["label"] for row in rows if row["split"] == split]) for split in ("train", "test")}
    told = _write_classifier(texts, labels, folder)
    cut = 3 * len(texts["unlabelled"]) // 4
    sentences = [each for text in texts["unlabelled"][:cut] for each in _sentences(text)][: sizes.sentences]
    begun = dict.fromkeys(_cut(_SENTENCE.split(text)[0])[0] for text in texts["unlabelled"][cut:])
    prompts = [each for each in begun if len(each.split()) == _BEGUN][: sizes.prompts]
    _write_lines(folder / "prompts.jsonl", [{"prompt": each} for each in prompts])
    # `sft` learns the chosen one, and pairs have two.
    pairs = [dict(zip(("prompt", "chosen"), _cut(each), strict=True)) | {"rejected": " -"} for each in sentences]
    _write_lines(folder / "sentences.jsonl", pairs)
    _write_model(sentences, folder / "random", sizes)
    told |= {"sentences": len(sentences), "prompts": len(prompts)}
    facts.write_text(json.dumps(told, indent=1) + "\n")
    return told


def _sentences(text: str) -> list[str]:
    return [each for each in _SENTENCE.split(text) if _SHORTEST <= len(each.split()) <= _LONGEST]


def _cut(sentence: str) -> tuple[str, str]:
    """Its first words, and the rest with the blank before it."""
    words = sentence.split()
    return " ".join(words[:_BEGUN]), " " + " ".join(words[_BEGUN:])


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_classifier(texts: dict[str, list[str]], labels: dict[str, np.ndarray], folder: Path) -> dict[str, Any]:
    """`weights.py` beside the copy of classifier.py; and its accuracy on the reviews of `test`."""
    judge = runpy.run_path(str(folder / "classifier.py"))
    counted = {split: [judge["grams"](text) for text in texts[split]] for split in ("train", "test")}
    seen = Counter(gram for each in counted["train"] for gram in each)
    known = sorted(gram for gram, times in seen.items() if times >= _SEEN_IN)
    place = {gram: number for number, gram in enumerate(known)}
    idf = np.array([math.log((1 + len(counted["train"])) / (1 + seen[gram])) + 1 for gram in known])
    rows, columns, values = _tfidf(counted["train"], place, idf)
    weights, bias = _fitted(rows, columns, values, labels["train"], len(known))
    rows, columns, values = _tfidf(counted["test"], place, idf)
    logits = np.bincount(rows, values * weights[columns], len(counted["test"])) + bias
    # Weights of all that it knows; six digits, so that the file says the same on machines that round otherwise.
    table = {gram: [round(float(idf[i]), 6), round(float(weights[i]), 6)] for gram, i in place.items()}
    (folder / "weights.py").write_text(
        f'"""Written by infra/frontier/reviews.py."""\n\nBIAS = {bias:.6f}\nWEIGHTS = {json.dumps(table, indent=0)}\n'
    )
    return {"grams": len(known), "accuracy on test": float(((logits > 0) == labels["test"]).mean())}


def _tfidf(counted: list[Counter[str]], place: dict[str, int], idf: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows, columns and values of what is not 0; a row has length 1."""
    found = [
        (row, place[gram], 1 + math.log(n))
        for row, each in enumerate(counted)
        for gram, n in each.items()
        if gram in place
    ]
    rows, columns, values = (np.array(each) for each in zip(*found, strict=True))
    values = values * idf[columns]
    return rows, columns, values / np.sqrt(np.bincount(rows, values**2))[rows]


def _fitted(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray, labels: np.ndarray, size: int
) -> tuple[np.ndarray, float]:
    """Logistic regression with a penalty of half the squares, by Nesterov's accelerated gradients."""
    step = 1 / (len(labels) / 4 * 2 + _PENALTY)  # rows have length 1, and the bias beside them a 1
    found, before = np.zeros(size + 1), np.zeros(size + 1)
    for number in range(1, 1001):
        ahead = found + (number - 1) / (number + 2) * (found - before)
        wrong = 1 / (1 + np.exp(-ahead[-1] - np.bincount(rows, values * ahead[columns], len(labels)))) - labels
        slope = np.append(np.bincount(columns, values * wrong[rows], size) + _PENALTY * ahead[:-1], wrong.sum())
        if np.abs(slope).max() < 1e-4:
            break
        found, before = ahead - step * slope, found
    return found[:-1], float(found[-1])


def _write_model(sentences: list[str], folder: Path, sizes: Sizes) -> None:
    """A random Llama, and byte pairs of the sentences that it will learn."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    end = "<|end|>"
    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator(sentences, vocab_size=sizes.vocabulary, special_tokens=[end], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pairs._tokenizer, eos_token=end, pad_token=end)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=sizes.hidden, intermediate_size=3 * sizes.hidden,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.hidden // 64, num_key_value_heads=sizes.hidden // 64,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
