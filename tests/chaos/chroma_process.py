"""A real Chroma server that can be killed and started again on the same port."""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from tests.chaos.processes import Process
from tests.eventually import eventually

HOST = "127.0.0.1"


class ChromaProcess:
    """`chroma run` on a directory and a port that stay the same from one life to the next."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._process: Process | None = None
        self.port = _free_port()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    def start(self, *, wait: bool = True) -> None:
        """Start it, unless it runs; and wait until it answers."""
        if not self.is_running:
            self._process = Process(
                [
                    *(str(Path(sys.executable).parent / "chroma"), "run"),
                    *("--path", str(self._directory / self._name)),
                    *("--host", HOST, "--port", str(self.port)),
                ],
                environ={**os.environ, "ANONYMIZED_TELEMETRY": "False", "RUST_LOG": "warn"},
                directory=self._directory,
                name=self._name,
            )
        if wait:
            eventually(self._answers, within=60)

    def kill(self) -> None:
        """SIGKILL: nothing is written back, connections break."""
        if self._process is not None:
            self._process.kill()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.is_running, self._process.log_end()
        connection = HTTPConnection(HOST, self.port, timeout=2)
        try:
            connection.request("GET", "/api/v2/heartbeat")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            time.sleep(0.05)
            return False
        finally:
            connection.close()


def _free_port() -> int:
    """A port that no client is given while the server is away: below those for connections."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        return port
