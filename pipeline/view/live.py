"""A report that is served while its run goes on. It is drawn again when something has changed, and is asked for."""

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline.plan import State, look_up
from pipeline.view.report.run import Run
from stages.artifacts import MANIFEST

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PAUSE = 2.0  # seconds between two drawings, at least;
_SHARE = 10  # and so many times what one takes: watching takes a tenth of a core at most


class Live:
    """The newest page of some runs."""

    def __init__(self, runs: Sequence[Run]):
        self._runs = list(runs)
        self._lock = threading.Lock()
        self._version, self._page = "", b""
        self._due = 0.0

    def version(self) -> str:
        """Of the page that is there for who asks now."""
        now = version_of(self._runs)
        return now if time.monotonic() >= self._due else self._version

    def page(self) -> bytes:
        with self._lock:
            now = version_of(self._runs)
            if now != self._version and time.monotonic() >= self._due:
                from pipeline.view.report.page import html

                began = time.monotonic()
                self._runs = [_looked_at(run) for run in self._runs]
                self._page, self._version = html(self._runs, live=now).encode(), now
                took = time.monotonic() - began
                self._due = time.monotonic() + max(_PAUSE, _SHARE * took)
            return self._page


def version_of(runs: Sequence[Run]) -> str:
    """Another one when anything of what the page shows is: by a look at files that grow, without reading them."""
    seen: list[Any] = []
    for run in runs:
        for step in run.steps:
            draft = run.store.draft(step.stage.name, step.fingerprint)
            made = (step.folder / MANIFEST).exists()
            parts = 0 if made else sum(1 for _ in draft.glob("part-*.parquet"))
            sizes = [] if made else [_size(draft / name) for name in ("metrics.jsonl", ".happened.jsonl")]
            seen.append((step.fingerprint, made, draft.exists(), parts, *sizes))
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def _size(path: Any) -> int:
    try:
        return int(path.stat().st_size)
    except FileNotFoundError:
        return 0


def _looked_at(run: Run) -> Run:
    """With what the store has now; a stage that nothing reads stays so."""
    steps = [step if step.state == State.NOT_NEEDED else look_up(step, run.store) for step in run.steps]
    return Run(run.name, steps, run.store)


def server(live: Live, host: str, port: int) -> ThreadingHTTPServer:
    """Raises OSError where the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if host in LOOPBACK and _name(self.headers.get("Host", "")) not in LOOPBACK:
                self._answer(403, "text/plain", b"this page is for this machine alone: raydpo watch --host ..")
            elif self.path == "/":
                self._answer(200, "text/html; charset=utf-8", live.page())
            elif self.path == "/version":
                self._answer(200, "text/plain", live.version().encode())
            else:
                self._answer(404, "text/plain", b"there is / and nothing else")

        def _answer(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            for name, value in (
                ("Content-Type", kind), ("Content-Length", str(len(content))), ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"),
            ):  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """A line a request is noise."""

    made: Callable[..., ThreadingHTTPServer] = ThreadingHTTPServer
    return made((host, port), Handler)


def _name(host: str) -> str:
    """Of a Host header, without its port. A page of elsewhere whose name was made to lead here has its own name."""
    return host.rsplit("]", 1)[0].lstrip("[") if host.startswith("[") else host.rsplit(":", 1)[0]
