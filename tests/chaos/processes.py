"""Processes that a scenario starts, pauses and kills. None outlives the tests, however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LOG_LINES = 60

# Set between fork and exec, in a process of its own: Python code must not run in the fork of a
# process with threads.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Process:
    """A program that runs beside the tests, its output in files."""

    def __init__(
        self, command: Sequence[str], *, environ: Mapping[str, str], directory: Path, name: str
    ) -> None:
        self.name = name
        self._out = directory / f"{name}.out"
        self._log = directory / f"{name}.log"
        words = list(command)
        if sys.platform == "linux":
            words = [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), *words]
        with self._out.open("ab") as out, self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                words,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._popen.poll()

    @property
    def is_running(self) -> bool:
        return self.code is None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._popen.kill()
        self._popen.wait()

    def terminate(self) -> None:
        self._popen.terminate()

    def pause(self) -> None:
        self._popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def wait(self, *, within: float) -> int:
        """The exit code, once it has ended."""
        try:
            return self._popen.wait(within)
        except subprocess.TimeoutExpired:
            self._popen.send_signal(signal.SIGABRT)  # Python's fault handler tells where it hangs
            self._popen.wait()
            raise AssertionError(f"{self.name} runs after {within:g} s{self.log_end()}") from None

    def output(self) -> str:
        return self._out.read_text()

    def log(self) -> str:
        return self._log.read_text()

    def log_end(self) -> str:
        """The last lines of its log, for the message of a test that fails."""
        lines = self.log().splitlines()[-LOG_LINES:]
        return f"\n--- {self.name} (code {self.code})\n" + "\n".join(lines)
