"""An engine that several threads ask at once: it draws for all of them together.

Asked by one at a time it would run half empty while the last completions of each are drawn.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

from stages.engine.generation import Completion, Generator, Prompt


class SharedGenerator:
    """`make` is called in a thread of the engine's own: it is made and asked in no other."""

    def __init__(self, make: Callable[[], Generator]):
        self._make = make
        self._generator: Generator | None = None
        self._thread = ThreadPoolExecutor(1, "engine")
        self._new: deque[tuple[Sequence[Prompt], Future[list[list[Completion]]]]] = deque()
        self._drawing: list[tuple[range, Future[list[list[Completion]]]]] = []
        self._made: dict[int, Completion] = {}
        self._seconds, self._loading, self._lock = 0.0, 0.0, Lock()

    def start(self) -> None:
        """Where it has not been made. Raises what `make` does."""
        self._thread.submit(self._ready).result()

    def generate(self, prompts: Sequence[Prompt]) -> list[list[Completion]]:
        """As Generator.generate. Where the engine raises, all that ask it do."""
        asked: Future[list[list[Completion]]] = Future()
        self._new.append((prompts, asked))
        self._thread.submit(self._draw)
        return asked.result()

    @property
    def tokenizer(self) -> Any:
        """Of the model, once it has been asked."""
        assert self._generator is not None
        return self._generator.engine.get_tokenizer()

    def spent(self) -> tuple[float, float]:
        """Seconds that the engine has been at work since this was asked last, and that its start took of them."""
        with self._lock:
            spent = self._seconds, self._loading
            self._seconds = self._loading = 0.0
        return spent

    def _ready(self) -> Generator:
        if self._generator is None:
            began = time.perf_counter()
            self._generator = self._make()
            self._count(loading := time.perf_counter() - began, loading)
        return self._generator

    def _count(self, seconds: float, loading: float = 0.0) -> None:
        with self._lock:
            self._seconds, self._loading = self._seconds + seconds, self._loading + loading

    def _draw(self) -> None:
        """Until all is drawn that has been asked for meanwhile; where an earlier call has done it, there is nothing."""
        try:
            generator = self._ready()
            while self._new or self._drawing:
                began = time.perf_counter()
                while self._new:
                    prompts, asked = self._new[0]
                    self._drawing.append((generator.begin(prompts), asked))
                    self._new.popleft()
                self._made.update(generator.step())
                self._count(time.perf_counter() - began)
                self._deliver(generator)
        except BaseException as error:
            self._fail(error)

    def _deliver(self, generator: Generator) -> None:
        """What is whole."""
        for each in [each for each in self._drawing if all(number in self._made for number in each[0])]:
            numbers, asked = each
            self._drawing.remove(each)
            asked.set_result(generator.by_prompt([self._made.pop(number) for number in numbers]))

    def _fail(self, error: BaseException) -> None:
        for _, asked in self._drawing:
            asked.set_exception(error)
        self._drawing.clear()
        while self._new:
            self._new.popleft()[1].set_exception(error)
