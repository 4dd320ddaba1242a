"""An HTTP server that answers what a test tells it to: for faults that no real server produces on
demand."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer. `silent` accepts the request and says nothing until the test is over."""

    status: int = 200
    body: Any = None  # bytes as they are, anything else as JSON
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False  # half of the body, then the connection ends
    hang_up: bool = False
    silent: bool = False


class ScriptedServer:
    """Gives its answers in turn, and the last one again and again."""

    def __init__(self) -> None:
        self.answers: deque[Answer] = deque()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.present = 0  # requests that are being answered
        self.most_present = 0
        self.counting = threading.Lock()
        self.over = threading.Event()
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def say(self, *answers: Answer) -> None:
        self.answers = deque(answers)

    @contextmanager
    def visited(self) -> Iterator[None]:
        with self.counting:
            self.present += 1
            self.most_present = max(self.most_present, self.present)
        try:
            yield
        finally:
            with self.counting:
                self.present -= 1


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    script = ScriptedServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 2  # seconds on an idle connection, which a failed test may leave open

        def answer(self) -> None:
            with script.visited():
                self.answer_in_turn()

        def answer_in_turn(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            script.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            answer = script.answers.popleft() if len(script.answers) > 1 else script.answers[0]
            if answer.silent:
                script.over.wait()
            if answer.silent or answer.hang_up:
                self.close_connection = True
                return
            body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body)
            data = body if isinstance(body, bytes) else body.encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if answer.cut else data)
            self.close_connection = answer.cut

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - the names that http.server looks for

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # waited for at the end: no thread outlives its test

    with Server(("127.0.0.1", 0), Handler) as server:
        script.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield script
        finally:
            script.over.set()
            server.shutdown()
            thread.join()
