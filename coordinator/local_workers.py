"""Worker processes on this machine, for the time of a run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping

import structlog

from tasks.database import Database
from tasks.errors import WorkersFailed
from tasks.workers import count_live_pids

READY_SECONDS = 15.0
MAX_FAILURES = 5  # workers that ended by an error, not by a signal, in one run

logger = structlog.get_logger(__name__)


class LocalWorkers:
    """Starts `count` worker processes, replaces those that die, and stops them.

    Each holds the reading end of a pipe as its standard input: when this process is gone, however
    it went, the pipe closes and the worker stops.
    """

    def __init__(self, count: int, *, queue_name: str, environ: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "coordinator.cli", "worker"]
        self._command = [*command, "--queue", queue_name, "--until-stdin-closes"]
        self._environ = dict(os.environ) | dict(environ)
        self._failures = 0
        self._processes = [self._start() for _ in range(count)]

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=self._environ,
            # A Ctrl-C in the terminal is for the coordinator, which then stops its workers.
            start_new_session=True,
        )

    def wait_until_ready(self, database: Database) -> int:
        """Wait until all have a lease, but not for ever; returns how many have."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            pids = [process.pid for process in self._processes]
            ready = count_live_pids(database, pids)
            if ready == len(pids) or time.monotonic() > deadline:
                return ready
            self.replace_dead()
            time.sleep(0.05)

    def replace_dead(self) -> None:
        """Start another worker for each that has ended by itself.

        Raises `WorkersFailed` if workers end with an error of their own, again and again: one that
        was killed is replaced for ever, one that cannot work would be too.
        """
        for index, process in enumerate(self._processes):
            code = process.poll()
            if code is None:
                continue
            if code > 0:
                self._failures += 1
            if self._failures > MAX_FAILURES:
                raise WorkersFailed(
                    f"Local workers end with code {code} again and again; see their messages above."
                )
            logger.warning("a local worker ended; starting another", code=code)
            self._close_pipe(process)
            self._processes[index] = self._start()

    def stop(self, *, grace: float = 4.0) -> None:
        """Stop all of them, by force after `grace` seconds."""
        for process in self._processes:
            self._close_pipe(process)
        deadline = time.monotonic() + grace
        for process in self._processes:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @staticmethod
    def _close_pipe(process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
