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
        asker.send((None, _said(error)))
        return
    asker.send((0.0, None))
    while True:
        prompt, completion = questions.get()
        try:
            value = function(json.loads(prompt), completion)
            # Of a number whatever its type.
            told = (float(value), None) if isinstance(value, Real) else (None, f"garbage: it gave {value!r:.80}")
        except Exception as error:  # whatever a function raises
            told = None, f"error: {_said(error)}"
        asker.send(told)


def _listen(asker: Connection, questions: "SimpleQueue[Any]") -> None:
    try:
        while True:
            questions.put(asker.recv())
    except (EOFError, OSError):
        os._exit(0)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


if __name__ == "__main__":
    main()
