"""An HTTP proxy in front of a real Chroma server that does to requests what a scenario asks for.

What happens to a request is decided by its contents and by how often it has been seen, never by
when it comes: with one seed, the same requests meet the same faults in whatever order threads and
processes send them.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOST = "127.0.0.1"
WRITES = ("add", "upsert", "delete", "update")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    path: str
    fingerprint: str  # the same for the same request, in every process and run
    seen: int  # how often it came before
    body: bytes

    @property
    def verb(self) -> str:
        """The end of the path: `get`, `upsert`, `count` and so on."""
        return urlsplit(self.path).path.rpartition("/")[2]

    @property
    def is_write(self) -> bool:
        return self.method == "POST" and self.verb in WRITES


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is done to a request. With nothing set, it is passed on and answered."""

    status: int | None = None  # answered in the server's place, which never sees the request
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before it is passed on
    hang_up: bool = False  # the server does it, the connection ends before the answer
    cut: bool = False  # half of the answer, then the connection ends
    hold: HeldWrite | None = None  # the server does it, the answer waits until it is released


class HeldWrite:
    """A write that the server carries out while its client waits for the answer."""

    def __init__(self) -> None:
        self.is_held = threading.Event()
        self.released = threading.Event()
        self.client_port = 0  # by which the waiting process can be found


Rule = Callable[[Request], Fault | None]


class FaultyProxy:
    """The proxy's address, its rule, and what it has done so far."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.rule: Rule = lambda _request: None
        self.faults: Counter[str] = Counter()  # by kind
        self.port = 0
        self._next_hold: HeldWrite | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def judge(self, method: str, path: str, body: bytes) -> Fault:
        with self._lock:
            fingerprint = _fingerprint(path, body)
            request = Request(
                method=method,
                path=path,
                fingerprint=fingerprint,
                seen=self._seen[fingerprint],
                body=body,
            )
            self._seen[fingerprint] += 1
            hold = self._next_hold
            if hold is not None and request.is_write:
                self._next_hold = None
                return Fault(hold=hold)
        fault = self.rule(request) or Fault()
        with self._lock:
            for kind in ("hang_up", "cut"):
                self.faults[kind] += getattr(fault, kind)
            if fault.status is not None:
                self.faults[f"{fault.status}"] += 1
        return fault

    def hold_next_write(self) -> HeldWrite:
        """Let the next write be carried out, and its client wait for the answer."""
        with self._lock:
            self._next_hold = HeldWrite()
            return self._next_hold

    def ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        """The real server's answer."""
        connection = HTTPConnection(urlsplit(self.upstream).netloc, timeout=120)
        try:
            connection.request(method, path, body or None, dict(headers))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


def slow_writes(seconds: float) -> Rule:
    """Makes a run last, so that faults meet it in the middle."""
    return lambda request: Fault(delay=seconds) if request.is_write else None


def some_requests(seed: int, share: float, faults: Sequence[Fault]) -> Rule:
    """Does one of the faults to this share of all requests, the first time that each is seen."""

    def rule(request: Request) -> Fault | None:
        dice = random.Random(f"{seed} {request.fingerprint}")
        if request.seen == 0 and dice.random() < share:
            return dice.choice(faults)
        return None

    return rule


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """Run a proxy in front of this server."""
    proxy = FaultyProxy(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with suppress(OSError):  # the client is gone, killed perhaps
                super().handle_one_request()
                return
            self.close_connection = True

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            fault = proxy.judge(self.command, self.path, body)
            time.sleep(fault.delay)
            if fault.status is not None:
                self.answer(fault.status, dict(fault.headers), fault.body, cut=fault.cut)
                return
            sent = {k: v for k, v in self.headers.items() if k.lower() in _PASSED_ON}
            try:
                status, headers, data = proxy.ask(self.command, self.path, body, sent)
            except (OSError, HTTPException):
                self.close_connection = True  # the server is away; so are we
                return
            if fault.hold is not None:
                fault.hold.client_port = self.client_address[1]
                fault.hold.is_held.set()
                fault.hold.released.wait()
            if fault.hang_up:
                self.close_connection = True
                return
            kept = {k: v for k, v in headers.items() if k.lower() in _PASSED_BACK}
            self.answer(status, kept, data, cut=fault.cut)

        def answer(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = self.close_connection or cut

        do_GET = do_POST = do_DELETE = do_PUT = pass_on  # noqa: N815 - http.server's names

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True  # a killed client's connection may stay open for ever
        request_queue_size = 128

    with Server((HOST, 0), Handler) as server:
        proxy.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


def _fingerprint(path: str, body: bytes) -> str:
    """What is asked for and for which ids; Chroma itself gives metadata in an order that varies."""
    words = [urlsplit(path).path.rpartition("/")[2]]
    if body:
        asked = json.loads(body)
        words += sorted(asked.get("ids") or [f"{asked.get('limit')} {asked.get('offset')}"])
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


_PASSED_ON = {"content-type", "accept", "authorization", "x-chroma-token", "user-agent"}
_PASSED_BACK = {"content-type", "retry-after"}
