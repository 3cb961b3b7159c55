"""A chat model's endpoint on this machine that says what a test wants."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Server:
    """`reply` gives (status, body) of a request's question, or pieces of bytes to send as they come; the server counts,
    and keeps what it was sent.
    """

    def __init__(self, reply: Callable[[str, int], tuple[int, Any]]):
        self.asked: Counter[str] = Counter()
        self.headers: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][0]["content"]
                server.asked[question] += 1
                server.headers.append(self.headers["Authorization"])
                status, said = reply(question, server.asked[question])
                if isinstance(said, Iterator):
                    self.send_response(status)
                    self.end_headers()
                    for piece in said:
                        self.wfile.write(piece)
                    return
                content = {"choices": [{"message": {"content": said}}]} if status == 200 else said
                sent = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # of clients that have not waited
        Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"
