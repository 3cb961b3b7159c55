"""What a judge has said, kept by the content of the question: written down as it is heard, and taken over later."""

import hashlib
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages import schema
from stages.errors import ContractError
from stages.judge.judges import Answer, Question

_log = logging.getLogger("raydpo")

ANSWERS = pa.schema(
    [
        ("key", pa.string()),  # 32 hex digits of the question
        ("value", pa.float64()),  # a score; of two completions 1, 0 or -1; null where the call failed
        ("fault", pa.string()),
    ]
)


def key_of(question: Question) -> str:
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()[:32]


class Log:
    """Answers of a part, in a file of lines that outlives the process. Only those of one run have faults: a call that
    failed is made again by the next one. With `contradictions` those of earlier runs stay too: nothing has failed.
    """

    def __init__(self, path: Path, contradictions: bool = False):
        self._path, self._lock = path, threading.Lock()
        self.known: dict[str, Answer] = {}
        self.requests: dict[str, int] = {}  # of all questions that the judge was asked
        for key, value, fault, requests, orders in _lines(path):
            self.requests[key] = self.requests.get(key, 0) + requests
            if fault is None or (contradictions and orders is not None):
                self.known[key] = Answer(value, fault, 0, orders)

    def hear(self, question: Question, answer: Answer) -> None:
        key = key_of(question)
        line = json.dumps([key, answer.value, answer.fault, answer.requests, answer.orders])
        with self._lock:
            self.known[key] = answer
            self.requests[key] = self.requests.get(key, 0) + answer.requests
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as lines:
                lines.write(line + "\n")

    def write(self, questions: Sequence[Question], path: Path) -> None:
        """The answers to `questions` as a table of ANSWERS."""
        keys = dict.fromkeys(map(key_of, questions))
        rows = [{"key": key, "value": self.known[key].value, "fault": self.known[key].fault} for key in keys]
        schema.write_part(pa.Table.from_pylist(rows, schema=ANSWERS), path)


def requests_of(folder: Path) -> int:
    """How many were made for all logs in a folder."""
    return sum(requests for path in folder.glob("*.jsonl") for *_, requests, _ in _lines(path))


def read_answers(path: Path, keys: Sequence[str]) -> dict[str, Answer]:
    """Of a file of ANSWERS those to `keys` that are no faults; of a damaged file none."""
    try:
        table = schema.read_columns(path, ["key", "value"], "Its questions are asked again")
    except ContractError as error:
        _log.warning("not taken over: %s", error)
        return {}
    table = table.filter(pc.and_(pc.is_in(table["key"], pa.array(keys)), pc.is_valid(table["value"])))
    return {key: Answer(value) for key, value in zip(*(table[n].to_pylist() for n in ("key", "value")), strict=True)}


def _lines(path: Path) -> Iterator[list[Any]]:
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):  # the last one of a process that was killed may be torn
            yield json.loads(line)
