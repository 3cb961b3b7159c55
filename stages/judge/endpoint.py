"""A chat model behind an OpenAI-compatible endpoint: requests with a limit, a budget and patience."""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp

from stages.errors import RecipeError
from stages.judge.config import Asking, ChatJudge
from stages.judge.judges import Answer, Question
from stages.judge.request import Reply, posted

PAIRWISE = """Two assistants have answered. Which answer is better? Judge what is said, not its length or its place.

[The dialogue]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

Explain in one sentence, and end with your verdict: [[A]], [[B]], or [[C]] where they are equally good."""

RUBRIC = """An assistant has answered. How good is the answer? Judge what is said, not its length.

[The dialogue]
{prompt}

[The answer]
{completion}

Explain in one sentence, and end with a number from {low} to {high}, the higher the better, like this: [[{high}]]."""

_VERDICT = re.compile(r"\[\[\s*(A|B|C)\s*\]\]")
_NUMBER = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]")
_AGAIN = {408, 409, 429, 500, 502, 503, 504}


class Endpoint:
    """`made`: requests of earlier runs, which count for the budget; `actors`: who share the limits; `section`: of the
    recipe.
    """

    def __init__(self, config: ChatJudge, limits: Asking, made: int = 0, actors: int = 1, section: str = "judge"):
        self._config, self._limits, self._actors, self._section = config, limits, actors, section
        self._key = None
        if config.key_env is not None:
            self._key = os.environ.get(config.key_env)
            if not self._key:
                raise RecipeError(
                    f"{section}.key_env: the environment variable {config.key_env} is not set on the nodes that judge. "
                    "Set it there; it is written down nowhere"
                )
        self._lock = threading.Lock()
        self._made, self._next = made, 0.0

    def ask(self, questions: Sequence[Question], heard: Callable[[Question, Answer], None]) -> None:
        """Raises RecipeError where the budget is spent; what was answered until then has been heard."""
        at_a_time = max(1, self._limits.requests_at_a_time // self._actors)
        with ThreadPoolExecutor(at_a_time) as pool:
            tasks = [pool.submit(lambda each: heard(each, self._answer(each)), question) for question in questions]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                for task in tasks:
                    task.cancel()
                raise

    def _answer(self, question: Question) -> Answer:
        prompt, *completions = question
        dialogue = _written(json.loads(prompt))
        if len(completions) == 1:
            low, high = self._config.scale
            told = _filled(
                self._config.question or RUBRIC, prompt=dialogue, completion=completions[0], low=low, high=high
            )
            said, fault, requests = self._said(told)
            found = _NUMBER.findall(said)
            if fault is None and (not found or not low <= float(found[-1]) <= high):
                fault = f"garbage: no [[number]] from {low:g} to {high:g} in {said[-60:]!r}"
            return Answer(None, fault, requests) if fault else Answer(float(found[-1]), None, requests)
        verdicts, requests = [], 0
        for first, second in (completions, completions[::-1]):
            told = _filled(self._config.question or PAIRWISE, prompt=dialogue, first=first, second=second)
            said, fault, made = self._said(told)
            requests += made
            found = _VERDICT.findall(said)
            if fault is None and not found:
                fault = f"garbage: no [[A]], [[B]] or [[C]] in {said[-60:]!r}"
            if fault is not None:
                return Answer(None, fault, requests)
            verdicts.append({"A": 1.0, "B": -1.0, "C": 0.0}[found[-1]])
        orders = verdicts[0], -verdicts[1]
        if orders[0] != orders[1]:
            return Answer(None, "contradiction: another verdict when the two change places", requests, orders)
        return Answer(orders[0], None, requests, orders)

    def _said(self, question: str) -> tuple[str, str | None, int]:
        """(what the model said, why it said nothing, requests)."""
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self._config.answer_tokens,
        }
        fault = ""
        for attempt in range(self._limits.retries + 1):
            self._wait()
            pause = None
            try:
                reply = self._sent(body)
                if reply.status < 300:
                    return _content(reply.body), None, attempt + 1
                fault = f"status {reply.status}: {self._redacted(reply.body[:500].decode(errors='replace'))[:200]}"
                if reply.status not in _AGAIN:
                    return "", fault, attempt + 1
                pause = _seconds(reply.retry_after)
            except TimeoutError:
                fault = f"time-out: no whole answer in {self._limits.timeout_seconds:g} seconds"
            except aiohttp.ClientConnectionError as error:
                fault = f"unreachable: {self._redacted(str(error))}"
            except (aiohttp.ClientError, ValueError, LookupError, TypeError, OSError) as error:
                fault = f"garbage: {type(error).__name__}: {self._redacted(str(error))[:200]}"
            if attempt < self._limits.retries:
                time.sleep(min(60.0, 0.5 * 2**attempt) if pause is None else pause)
        return "", fault, self._limits.retries + 1

    def _sent(self, body: dict[str, Any]) -> Reply:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        url = f"{self._config.endpoint.rstrip('/')}/chat/completions"
        return posted(url, body, headers, self._limits.timeout_seconds)

    def _wait(self) -> None:
        """For the turn of a request; raises RecipeError where there is no more budget."""
        with self._lock:
            most = self._limits.max_requests
            if most is not None and self._made >= most:
                stage = self._section.partition(".")[0]
                raise RecipeError(
                    f"the judge has made {self._made} requests, and cluster.{stage}.max_requests is {most}. Its "
                    "answers are kept: raise it, and run again"
                )
            self._made += 1
            now, each = time.monotonic(), 0.0
            if self._limits.requests_per_minute is not None:
                each = 60 * self._actors / self._limits.requests_per_minute
            turn = max(now, self._next)
            self._next = turn + each
        time.sleep(max(0.0, turn - now))

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _content(body: bytes) -> str:
    said = json.loads(body)["choices"][0]["message"]["content"]
    if not isinstance(said, str):
        raise ValueError(f"the content is {said!r:.40}")
    return said


def _filled(question: str, **texts: Any) -> str:
    """Only the names that stand in our own form; braces in texts and elsewhere are left."""

    def text(match: re.Match[str]) -> str:
        value = texts[match[1]]
        return f"{value:g}" if isinstance(value, float) else str(value)

    return re.sub(rf"\{{({'|'.join(texts)})\}}", text, question)


def _written(prompt: str | list[dict[str, Any]]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in prompt)


def _seconds(retry_after: str | None) -> float | None:
    try:
        return min(60.0, max(0.0, float(retry_after))) if retry_after else None
    except ValueError:
        return None
