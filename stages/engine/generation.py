"""Draws completions with a vLLM engine: token ids of prompts in, n completions of each out.

A sample follows from the model, its prompt and its seed alone. On CPUs in float32 that holds to the bit, whatever else
is in the engine's batches: its kernels give a row the same numbers in any company but for two, which are mended here.
"""

import os
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.engine.config import EngineResources, Sampling
from stages.engine.vllm_engine import start_engine

if TYPE_CHECKING:
    import torch


# Its id, and token ids. What the id is tells samples apart: with another id, the same tokens get others.
Prompt = tuple[str, list[int]]


class Completion(NamedTuple):
    ids: list[int]  # as sampled: the end token among them, or what spells a stop text
    text: str  # without special tokens and stop texts
    token_logps: np.ndarray  # float32 [ids]: log p(id | prompt, ids before it) of the model as it is, nats: at
    # temperature 1 and with nothing cut off, whatever it was drawn with
    finish: str  # "stop": it ended by itself; "length": it was cut at max_tokens


class Generator:
    """An engine for prompts of which none has more than `longest` tokens."""

    def __init__(self, model: str, dtype: str, longest: int, sampling: Sampling, resources: EngineResources):
        self.sampling = sampling
        if not resources.gpus_per_actor:
            # Else the attention over a long sequence is split, and summed in another order, as the batch has room.
            os.environ["VLLM_CPU_ATTN_SPLIT_KV"] = "0"
        self.engine = start_engine(
            model, dtype, longest + sampling.max_tokens, resources, keep_prefixes=False, generates=True
        )
        if not resources.gpus_per_actor:
            self.engine.apply_model(_never_one_row)

    def generate(self, prompts: Sequence[Prompt]) -> list[list[Completion]]:
        """Of each prompt its `num_samples` completions."""
        numbers, made = self.begin(prompts), dict[int, Completion]()
        while len(made) < len(numbers):
            made.update(self.step())
        return self.by_prompt([made[number] for number in numbers])

    def begin(self, prompts: Sequence[Prompt]) -> range:
        """Put them into the engine, beside what is there; the numbers of their completions."""
        from vllm import SamplingParams, TokensPrompt

        asked, wanted, given = self.sampling, [], []
        for name, ids in prompts:
            for number in range(asked.num_samples):
                given.append(TokensPrompt(prompt_token_ids=ids))
                wanted.append(
                    SamplingParams(
                        temperature=asked.temperature,
                        top_p=asked.top_p,
                        max_tokens=asked.max_tokens,
                        stop=list(asked.stop),
                        seed=seed_of(asked.seed, name, number),
                        logprobs=0,  # of the sampled token, and no others
                        flat_logprobs=True,
                    )
                )
        first = next(self.engine.request_counter) + 1  # it numbers requests as they come
        self.engine.enqueue(given, wanted, use_tqdm=False)
        return range(first, first + len(given))

    def step(self) -> dict[int, Completion]:
        """Let the engine draw a token of each completion that it has at work; those that are whole by that."""
        outputs: list[Any] = self.engine.llm_engine.step()
        return {int(each.request_id): _completion(each.outputs[0]) for each in outputs if each.finished}

    def by_prompt(self, made: Sequence[Completion]) -> list[list[Completion]]:
        several = self.sampling.num_samples
        return [list(made[i : i + several]) for i in range(0, len(made), several)]


def seed_of(seed: int, prompt: str, number: int) -> int:
    """From 0 to 2^63: of sample `number` of the prompt with this id."""
    told = f"{seed}/{number}/{prompt}".encode(errors="surrogatepass")
    return int.from_bytes(blake2b(told, digest_size=8).digest(), "little") >> 1


def _completion(output: Any) -> Completion:
    values = np.asarray(output.logprobs.logprobs, np.float32)
    return Completion(list(output.token_ids), output.text, values, str(output.finish_reason))


def _never_one_row(model: "torch.nn.Module") -> None:
    """oneDNN multiplies a single row by a kernel of its own, which sums in another order. So it is given two."""
    for layer in model.modules():
        multiply = getattr(layer, "cpu_linear", None)
        if multiply is not None:
            layer.cpu_linear = _of_two_rows(multiply)  # type: ignore[assignment]


def _of_two_rows(multiply: Callable[..., "torch.Tensor"]) -> Callable[..., "torch.Tensor"]:
    def multiplied(x: "torch.Tensor", *rest: Any) -> "torch.Tensor":
        return multiply(x.expand(2, -1).contiguous(), *rest)[:1] if len(x) == 1 else multiply(x, *rest)

    return multiplied
