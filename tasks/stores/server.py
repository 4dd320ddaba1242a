"""A Chroma server of our own: a `chroma run` subprocess that serves a directory on loopback."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tasks.errors import InvalidInput, StoreRefused, StoreUnavailable
from tasks.stores.directory_lock import DirectoryLock

HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05
_PORT_ATTEMPTS = 5
_LOG_LINES = 5
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# The kernel ends the server when we are killed and cannot: set between fork and exec, in a process
# of its own, because Python code must not run in the fork of a process with threads.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ChromaServer:
    """Serves a directory from `start` to `stop`; as a context manager, within the `with`.

    The directory must exist; an empty one becomes a new Chroma directory. It is locked meanwhile.
    """

    def __init__(self, directory: str | Path, *, start_seconds: float = START_SECONDS) -> None:
        self._directory = Path(directory)
        self._start_seconds = start_seconds
        self._lock: DirectoryLock | None = None
        self._child: _Child | None = None
        self._port = 0

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:port`, while it runs."""
        return f"http://{HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The server's process, while it runs."""
        return self._child.process.pid if self._child else None

    def start(self) -> Self:
        """Start it, and wait until it answers.

        Raises `InvalidInput` if the directory is in use or chroma is not installed, `StoreRefused`
        with the end of its log if chroma gives up, and `StoreUnavailable` if it does not answer
        in time.
        """
        if self._child is not None:
            return self
        executable = _executable()
        self._lock = DirectoryLock(self._directory)
        try:
            for attempt in range(1, _PORT_ATTEMPTS + 1):
                self._port = _free_port()
                self._child = _Child(
                    [
                        *(executable, "run", "--path", str(self._directory.absolute())),
                        *("--host", HOST, "--port", str(self._port)),
                    ]
                )
                if self._wait(last=attempt == _PORT_ATTEMPTS):
                    return self
                self._child.stop()
            raise AssertionError("the last attempt returns or raises")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and all its processes. May be called again."""
        if self._child is not None:
            self._child.stop()
            self._child = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait(self, *, last: bool) -> bool:
        """Wait until it answers; False if it should be tried on another port."""
        assert self._child is not None
        deadline = time.monotonic() + self._start_seconds
        while not self._child.exited.wait(_POLL_SECONDS):
            if _answers(self._port) and _listens(self._child.process.pid, self._port):
                return True
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"{self._directory}: chroma did not answer within {self._start_seconds:g} s"
                    f"{self._child.log_end()}"
                )
        # Another process may have taken the port between our choice and chroma's start.
        if not last and not _is_free(self._port):
            return False
        raise StoreRefused(
            f"{self._directory}: chroma ended with code {self._child.process.returncode}"
            f"{self._child.log_end()}"
        )


class _Child:
    """One subprocess in its own process group, with its log."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._scratch = Path(tempfile.mkdtemp(prefix="chroma-sync-"))
        self._log = self._scratch / "chroma.log"
        self.exited = threading.Event()
        started = threading.Event()
        failures: list[OSError] = []
        # Linux ends the child when the THREAD that started it ends, so a thread is kept for it.
        threading.Thread(
            target=self._run, args=(started, failures), name="chroma-server", daemon=True
        ).start()
        started.wait()
        if failures:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise failures[0]
        # At the interpreter's end too, if nobody called `stop`.
        self._end = weakref.finalize(self, _end, self.process, self._scratch, os.getpid())

    def _run(self, started: threading.Event, failures: list[OSError]) -> None:
        command = self._command
        if sys.platform == "linux":
            command = [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), *command]
        try:
            with self._log.open("wb") as log:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self._scratch,  # chroma reads a configuration that lies where it starts
                    # At its default level it logs a kilobyte for each request.
                    env={**os.environ, "ANONYMIZED_TELEMETRY": "False", "RUST_LOG": "warn"},
                    start_new_session=True,  # Ctrl-C is for us, who stop it when we are done
                )
        except OSError as error:
            failures.append(error)
            return
        finally:
            started.set()
        self.process.wait()
        self.exited.set()

    def stop(self) -> None:
        self._end()

    def log_end(self) -> str:
        """The last lines of its log, as the end of a one-line message."""
        text = _COLOURS.sub("", self._log.read_text(errors="replace"))
        lines = [line for line in text.splitlines() if any(map(str.isalnum, line))]
        return ": " + " | ".join(line.strip() for line in lines[-_LOG_LINES:]) if lines else ""


def _end(process: subprocess.Popen[bytes], scratch: Path, owner: int) -> None:
    if os.getpid() != owner:  # in a fork of the process that started it
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            break
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what its group may still hold
    shutil.rmtree(scratch, ignore_errors=True)


def _executable() -> str:
    beside = Path(sys.executable).parent / "chroma"
    found = str(beside) if beside.exists() else shutil.which("chroma")
    if found is None:
        raise InvalidInput(
            f"the chroma program is not beside {sys.executable}: pip install chromadb"
        )
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _answers(port: int) -> bool:
    connection = HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/api/v2/heartbeat")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _listens(pid: int, port: int) -> bool:
    """Whether it is this process that answers, and not one that was faster to take the port."""
    try:
        connections = psutil.Process(pid).net_connections(kind="tcp")
    except psutil.AccessDenied:
        return True  # macOS shows this to root alone
    except psutil.Error:
        return False
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in connections
    )
