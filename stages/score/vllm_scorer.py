"""Scores with a vLLM engine: token ids in, the log-probs of each completion's trained tokens out."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stages import schema, spans
from stages.engine.vllm_engine import picks_tokens, start_engine
from stages.score.config import ScoreConfig, ScoreResources


class _Sequence(NamedTuple):
    """A prompt and a completion up to its last trained token."""

    prompt: list[int]
    completion: list[int]
    trained: list[int]  # spans of the completion

    @classmethod
    def of(cls, prompt: list[int], completion: list[int], trained: list[int]) -> "_Sequence":
        return cls(prompt, completion[: trained[-1]], trained)

    @property
    def start(self) -> int:
        """Of the first trained token, or after it where nothing comes before it: a causal model says nothing of it."""
        return max(self.trained[0], int(not self.prompt))

    def select(self, values: np.ndarray) -> np.ndarray | None:
        """Values of all tokens from `start` on -> of the trained; None where there are not as many.

        A trained token before `start` has a log-prob of 0, as in training's forward pass.
        """
        marks = spans.marks(len(self.completion), self.trained)[self.start :]
        if len(values) != len(marks):
            return None
        return np.concatenate([np.zeros(max(self.start - self.trained[0], 0), np.float32), values[marks]])


class VllmScorer:
    def __init__(self, config: ScoreConfig, resources: ScoreResources, longest: int):
        # vLLM wants room for the one token that it must generate.
        self.engine = start_engine(config.model, config.dtype, longest + 1, resources, resources.share_prompt_prefix)
        self.picks_tokens = picks_tokens(self.engine)
        self.shares_prefix = self.picks_tokens and resources.share_prompt_prefix

    @property
    def path(self) -> str:
        """Which way of asking is used, for the record."""
        return "vllm, tokens picked" if self.picks_tokens else "vllm, all positions"

    def token_logps(self, pairs: pa.Table) -> list[np.ndarray | None]:
        """Log-probs of the trained tokens of 2B completions of B pairs: chosen, rejected, chosen, ... float32, nats.

        None where the engine gave nothing for a sequence.
        """
        # All chosen first: when the rejected come, the prompts are in the engine's cache, if it keeps one.
        sequences = [
            _Sequence.of(*row)
            for side in schema.sides(pairs.column_names)
            for row in zip(
                *(pairs[name].to_pylist() for name in ("prompt_ids", f"{side}_ids", f"{side}_trained")), strict=True
            )
        ]
        # What an engine need not be asked: of one token, without a prompt.
        values = [each.select(np.zeros(0, np.float32)) for each in sequences]
        ask = self._picked if self.picks_tokens else self._all_positions
        # Nothing is given where more than the prompt was found in the cache, as both sides begin alike: ask again.
        for shared in (True, False) if self.shares_prefix else (False,):
            missing = [i for i, value in enumerate(values) if value is None]
            for i, value in zip(missing, ask([sequences[i] for i in missing], shared), strict=True):
                values[i] = value
        return [value for pair in zip(values[: len(pairs)], values[len(pairs) :], strict=True) for value in pair]

    def _picked(self, sequences: list[_Sequence], shared: bool) -> list[np.ndarray | None]:
        from vllm import SamplingParams

        wanted = [
            SamplingParams(
                max_tokens=1,
                temperature=0.0,
                detokenize=False,
                prompt_logprob_token_ids=np.asarray(each.completion[each.start :], np.int32)[:, None],
                prompt_logprob_start=len(each.prompt) + each.start - 1,  # the position that predicts the first of them
                skip_reading_prefix_cache=not shared,
            )
            for each in sequences
        ]
        outputs = [output.prompt_token_id_logprobs for output in self._generate(sequences, wanted)]
        return [
            None if values is None else each.select(np.asarray(values, np.float32)[:, 0])
            for values, each in zip(outputs, sequences, strict=True)
        ]

    def _all_positions(self, sequences: list[_Sequence], _: bool) -> list[np.ndarray | None]:
        from vllm import SamplingParams

        # 0: the log-prob of the prompt's own token at each position, and no others.
        wanted = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, flat_logprobs=True, detokenize=False)
        outputs = [output.prompt_logprobs for output in self._generate(sequences, wanted)]
        # Element j scores token j + 1; the completion is the tail.
        return [
            None
            if values is None
            else each.select(np.asarray(values.logprobs[each.start - len(each.completion) :], np.float32))
            for values, each in zip(outputs, sequences, strict=True)
        ]

    def _generate(self, sequences: list[_Sequence], sampling: Any) -> list[Any]:
        from vllm import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=each.prompt + each.completion) for each in sequences]
        outputs: list[Any] = self.engine.generate(prompts, sampling, use_tqdm=False)
        return outputs
