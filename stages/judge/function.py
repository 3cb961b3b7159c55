"""A judge that is a function, called in a process of its own.

Only a process can be stopped for good: a thread that hangs holds its core, and maybe Python's lock, for ever.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from multiprocessing import Pipe
from pathlib import Path

from stages.errors import RecipeError
from stages.judge import called
from stages.judge.config import FunctionJudge
from stages.judge.judges import Answer, Question

_LOADING_SECONDS = 600.0


class Function:
    """A call that takes longer than `timeout_seconds`, or whose process dies, has failed; the next one has another
    process.
    """

    def __init__(
        self,
        config: FunctionJudge,
        modules: dict[str, str],
        folder: Path,
        timeout_seconds: float,
        field: str = "judge.function",
    ):
        """`folder`: where the modules are put, for Python to find them; `field`: of the recipe. Raises RecipeError
        where they do not load.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source)
        self._function, self._folder, self._timeout, self._field = config.function, folder, timeout_seconds, field
        self._start()

    def ask(self, questions: Sequence[Question], heard: Callable[[Question, Answer], None]) -> None:
        for question in questions:
            if self._process.poll() is not None:
                self._start()
            heard(question, self._answer(question))

    def close(self) -> None:
        self._asked.close()
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._asked, theirs = Pipe()
        with closing(theirs):
            self._process = subprocess.Popen(
                [sys.executable, "-m", called.__name__, str(theirs.fileno()), str(self._folder.absolute()),
                 *self._function.split(":")],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
        _, fault = self._heard(_LOADING_SECONDS)
        if fault is not None:
            raise RecipeError(f"{self._field} {self._function} cannot be loaded: {fault}")

    def _answer(self, question: Question) -> Answer:
        try:
            self._asked.send_bytes(json.dumps(question).encode())
        except OSError:  # it died after its last answer
            return Answer(None, f"error: {self._end()}")
        value, fault = self._heard(self._timeout)
        return Answer(None, fault) if fault is not None else Answer.of(value)

    def _heard(self, seconds: float) -> tuple[float | None, str | None]:
        """(number, why there is none)."""
        try:
            if self._asked.poll(seconds):
                value, fault = json.loads(self._asked.recv_bytes())
                return value, fault
        except (EOFError, OSError, ValueError, TypeError):  # it has ended, or the function has written there itself
            return None, f"error: {self._end()}"
        self.close()
        return None, f"time-out: no answer in {seconds:g} seconds"

    def _end(self) -> str:
        self.close()
        return f"its process ended with {self._process.returncode}"
