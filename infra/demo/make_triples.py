"""The demo's preference set: real completions of SmolLM2-135M-Instruct, labelled by a measured sentiment.

Usage: python infra/demo/make_triples.py       reads prompts.txt beside this file and .models/ (see smollm2.py),
                                               writes configs/data/demo_triples.jsonl; needs vllm and vaderSentiment

How the label is made: every prompt gets eight samples. A sample cut at the token limit is cut back to its last full
sentence, or dropped where it has none. VADER scores each text from -1 to 1 (its "compound" score). A triple is two of
the eight samples: of all pairs of similar token length, the one with the widest gap in score, where that gap is at
least MIN_GAP; "chosen" is the more positive text. No person ranked anything: the label means "sounds more positive",
not "is the better answer".
"""

import json
import os
import re
import zlib
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".models" / "SmolLM2-135M-Instruct"
PROMPTS = Path(__file__).with_name("prompts.txt")
TRIPLES = ROOT / "configs" / "data" / "demo_triples.jsonl"

SAMPLING = {"n": 8, "temperature": 1.0, "top_p": 0.95, "max_tokens": 40}
CPU_ENGINE = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 64, "gpu_memory_utilization": 0.3}
MIN_GAP = 0.5
MAX_LENGTH_DIFFERENCE = 5  # tokens; keeps length from becoming the label
FULL_SENTENCES = re.compile(r".*[.!?][\"'”)]*(?=\s|$)", re.DOTALL)


class Candidate(NamedTuple):
    text: str
    tokens: int
    sentiment: float


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def usable_text(completion) -> str:
    if completion.finish_reason == "stop":
        return completion.text.strip()
    full = FULL_SENTENCES.match(completion.text)
    return full.group().strip() if full else ""


def widest_pair(candidates: list[Candidate]) -> tuple[Candidate, Candidate] | None:
    """(chosen, rejected), or None where no two candidates of similar length differ clearly."""
    pairs = [
        (better, worse)
        for better, worse in permutations(candidates, 2)
        if better.sentiment - worse.sentiment >= MIN_GAP and abs(better.tokens - worse.tokens) <= MAX_LENGTH_DIFFERENCE
    ]
    return max(pairs, key=lambda pair: pair[0].sentiment - pair[1].sentiment, default=None)


def main() -> None:
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")  # vllm reads them on import
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    from vllm import LLM, SamplingParams

    prompts = PROMPTS.read_text().splitlines()
    llm = LLM(str(MODEL), enforce_eager=True, enable_prefix_caching=False, seed=0, **CPU_ENGINE)
    # A seed of its own for each prompt: one seed for all would draw the same random numbers, hence the same phrases.
    params = [SamplingParams(**SAMPLING, seed=zlib.crc32(prompt.encode())) for prompt in prompts]
    answers = llm.chat([turn("user", prompt) for prompt in prompts], params)

    tokenizer, analyzer = llm.get_tokenizer(), SentimentIntensityAnalyzer()
    triples = []
    for prompt, answer in zip(prompts, answers, strict=True):
        texts = filter(None, map(usable_text, answer.outputs))
        pair = widest_pair(
            [Candidate(text, len(tokenizer.encode(text)), analyzer.polarity_scores(text)["compound"]) for text in texts]
        )
        if pair:
            chosen, rejected = pair
            triples.append(
                {
                    "prompt": turn("user", prompt),
                    "chosen": turn("assistant", chosen.text),
                    "rejected": turn("assistant", rejected.text),
                    "chosen_sentiment": chosen.sentiment,
                    "rejected_sentiment": rejected.sentiment,
                }
            )
    TRIPLES.write_text("".join(json.dumps(triple, ensure_ascii=False) + "\n" for triple in triples))
    print(f"{len(triples)} of {len(prompts)} prompts gave a triple -> {TRIPLES.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
