"""The process in which a judge's function is called: it may hang or crash there, and is killed and started anew.

It imports of ours nothing: so it starts in a moment, and the function finds Python as it was.
"""

import importlib
import json
import os
import sys
import threading
from multiprocessing.connection import Connection
from numbers import Real
from queue import SimpleQueue
from typing import Any


def main() -> None:
    """Answer (prompt as JSON, completion) with (number, None) or (None, fault), the first one when all is loaded."""
    asker, folder, module, name = Connection(int(sys.argv[1])), *sys.argv[2:]
    sys.path.insert(0, folder)
    questions: SimpleQueue[tuple[str, str]] = SimpleQueue()
    # Who asks may die while the function hangs.
    threading.Thread(target=_listen, args=(asker, questions), daemon=True).start()
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        _tell(asker, None, _said(error))
        return
    _tell(asker, 0.0, None)
    while True:
        prompt, completion = questions.get()
        try:
            value = function(json.loads(prompt), completion)
            # Of a number whatever its type.
            told = (float(value), None) if isinstance(value, Real) else (None, f"garbage: it gave {value!r:.80}")
        except Exception as error:  # whatever a function raises
            told = None, f"error: {_said(error)}"
        _tell(asker, *told)


def _tell(asker: Connection, value: float | None, fault: str | None) -> None:
    """As JSON: a connection's own way is pickles, and the function could send one that runs in who asks."""
    asker.send_bytes(json.dumps([value, fault]).encode())


def _listen(asker: Connection, questions: "SimpleQueue[Any]") -> None:
    try:
        while True:
            questions.put(json.loads(asker.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


if __name__ == "__main__":
    main()
