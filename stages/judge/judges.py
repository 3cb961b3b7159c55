"""What every judge answers; and a reward model."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from stages.errors import RecipeError
from stages.judge.config import RewardModel

Question = tuple[str, ...]  # the prompt as JSON, and one completion, or two that are compared


class Answer(NamedTuple):
    """`value`: a score, higher is better; of two completions 1 where the first is better, -1 where the second is, 0."""

    value: float | None
    fault: str | None = None
    requests: int = 0
    # Of two completions that were compared in both orders what was said of the first: as it stood first, and second.
    orders: tuple[float, float] | None = None

    @classmethod
    def of(cls, value: Any, requests: int = 0) -> "Answer":
        """A fault where it is no finite number."""
        if isinstance(value, bool | int | float | np.number) and math.isfinite(value):
            return cls(float(value), None, requests)
        return cls(None, f"garbage: it gave {value!r:.80}, and no finite number", requests)


class Judge(Protocol):
    def ask(self, questions: Sequence[Question], heard: Callable[[Question, Answer], None]) -> None:
        """Call `heard` for each question as it is answered, in any order."""


class Classifier:
    """A reward model, float32 or bfloat16, on one device."""

    def __init__(self, config: RewardModel, gpus: int, max_tokens: int):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from stages.model_files import split_revision

        folder, revision = split_revision(config.model)
        self._config, self._max_tokens = config, max_tokens
        self._device = torch.device("cuda" if gpus else "cpu")
        self._tokenizer = AutoTokenizer.from_pretrained(
            folder, revision=revision, truncation_side="left", trust_remote_code=False
        )
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "right"
        model, told = AutoModelForSequenceClassification.from_pretrained(
            folder, revision=revision, dtype=getattr(torch, config.dtype), output_loading_info=True,
            trust_remote_code=False, use_safetensors=True,
        )  # fmt: skip
        if told["missing_keys"]:
            missing = ", ".join(sorted(told["missing_keys"])[:3])
            raise RecipeError(
                f"judge.model {config.model} has no weights for {missing}: it is no reward model. Name one that was "
                "trained to classify sequences"
            )
        if model.config.num_labels > 2:
            raise RecipeError(f"judge.model {config.model} has {model.config.num_labels} labels; a reward has 1 or 2")
        model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model = model.to(self._device).eval()

    def ask(self, questions: Sequence[Question], heard: Callable[[Question, Answer], None]) -> None:
        import torch

        ids = [self._ids(question) for question in questions]
        left = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        while left:
            batch = [left.pop()]
            longest = len(ids[batch[0]])
            while left and (len(batch) + 1) * longest <= self._max_tokens:
                batch.append(left.pop())
            padded = self._tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt").to(self._device)
            with torch.inference_mode():
                logits = self._model(**padded).logits.float().cpu().numpy()
            values = logits[:, -1] - (logits[:, 0] if logits.shape[1] == 2 else 0)
            for i, value in zip(batch, values, strict=True):
                heard(questions[i], Answer.of(value))

    def _ids(self, question: Question) -> list[int]:
        prompt, completion = json.loads(question[0]), question[1]
        tokenizer, most = self._tokenizer, self._config.context
        if isinstance(prompt, str):
            return tokenizer(prompt + completion, truncation=True, max_length=most).input_ids
        messages = [*prompt, {"role": "assistant", "content": completion}]
        if tokenizer.chat_template is None:  # a classifier of plain text
            text = "\n\n".join(str(message["content"]) for message in messages)
            return tokenizer(text, truncation=True, max_length=most).input_ids
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        return tokenizer(text, add_special_tokens=False, truncation=True, max_length=most).input_ids
