"""The coordinator and the workers of the demo: processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import psutil

STOP_SECONDS = 15.0

Process: TypeAlias = subprocess.Popen[str]


def forget_settings() -> None:
    """Take what steers chroma-sync out of the environment, also of processes started later."""
    for name in list(os.environ):
        if name.startswith("SYNC_") or name in ("DATABASE_URL", "ENABLE_SYNC_WORKER"):
            del os.environ[name]


@contextlib.contextmanager
def chroma_sync(*arguments: str, log: Path, database_url: str) -> Iterator[Process]:
    """Run a command of chroma-sync beside this process; at the end it is stopped if it still runs.

    Its standard output is a pipe; its logs and errors go to the file.
    """
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "coordinator.cli", *arguments],
            stdin=subprocess.PIPE,  # it closes when this process is gone, however it went
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"DATABASE_URL": database_url},
            # Ctrl-C is for the demo, which then stops everything in order.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def dismiss(process: Process) -> None:
    """Tell a worker that nobody is there any more: it stops in its own time."""
    if process.stdin is not None:
        process.stdin.close()


def _stop(process: Process) -> None:
    with process:  # closes the pipes and reaps the process
        dismiss(process)
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


@contextlib.contextmanager
def paused(process: Process) -> Iterator[None]:
    """Keep the process from going on for a while. It may be killed meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def descendants(postgres_pid: int) -> list[psutil.Process]:
    """What this process has started, directly or not; Postgres detaches itself, hence its pid."""
    postgres = psutil.Process(postgres_pid)
    ours = psutil.Process().children(recursive=True)
    return list({*ours, postgres, *postgres.children(recursive=True)})


def survivors(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    # One that its parent has left is a zombie for as long as process 1 does not care (in a
    # container without an init, for ever); it has ended all the same.
    return [process for process in processes if process.is_running() and not _is_zombie(process)]


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
