"""What the demo plays on: Postgres, two Chroma servers and the workers, started and stopped."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
from rich.console import Console

from coordinator.session import open_database
from deploy.demo.ledger import RunLedger
from deploy.demo.processes import Process, chroma_sync, descendants, dismiss
from tasks.settings import Settings
from tasks.stores.server import ChromaServer

POLL_SECONDS = 0.02
PATIENCE_SECONDS = 120.0
LOG_LINES = 15  # of each process, shown if the demo fails

T = TypeVar("T")


class DemoFailed(Exception):
    """Something did not hold; the message says what."""


@dataclass(kw_only=True)
class Stage:
    """Everything that was started."""

    directory: Path
    database_url: str
    ledger: RunLedger
    source: str
    target: str
    stack: contextlib.ExitStack
    workers: dict[str, Process] = field(default_factory=dict)  # by the ledger's name for each

    def run(self, *arguments: str, log: str) -> Process:
        """Run chroma-sync beside this process, until the stage is closed."""
        path = self.directory / f"{log}.log"
        running = chroma_sync(*arguments, log=path, database_url=self.database_url)
        return self.stack.enter_context(running)

    def name(self, worker_id: str) -> str:
        """A worker's name for people: `worker 2`."""
        return f"worker {list(self.workers).index(worker_id) + 1}"

    def processes(self) -> list[psutil.Process]:
        """All that run because of us."""
        pid_file = self.directory / "postgres" / "postmaster.pid"
        return descendants(int(pid_file.read_text().split()[0]))

    def dismiss_workers(self) -> None:
        """Ask all of them to stop, so that they do so at the same time."""
        for process in self.workers.values():
            dismiss(process)

    def wait(self, what: str, condition: Callable[[], T | None], *processes: Process) -> T:
        """What the condition gives, once it gives something true.

        Raises `DemoFailed` if that takes too long, or if one of the processes failed meanwhile.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := condition()):
            if any(process.poll() for process in processes):
                raise DemoFailed(f"A process failed while the demo waited for {what}.")
            if time.monotonic() > deadline:
                raise DemoFailed(f"The demo waited {PATIENCE_SECONDS:.0f} s for {what}.")
            time.sleep(POLL_SECONDS)
        return found


def require(holds: bool, otherwise: str) -> None:
    """Raise `DemoFailed` unless it holds."""
    if not holds:
        raise DemoFailed(otherwise)


@contextlib.contextmanager
def open_stage(console: Console, *, workers: int) -> Iterator[Stage]:
    """Start everything in a new directory; stop all of it and remove the directory at the end."""
    with contextlib.ExitStack() as stack:
        scratch = tempfile.TemporaryDirectory(prefix="chroma-sync-demo-")
        directory = Path(stack.enter_context(scratch))
        stack.enter_context(_logs_on_failure(console, directory))
        database = stack.enter_context(open_database(Settings(sync_data_dir=directory)))
        with ThreadPoolExecutor() as pool:  # each takes its time, so both at once
            source, target = pool.map(
                lambda side: stack.enter_context(_chroma_server(directory / side)),
                ("source", "target"),
            )
        stage = Stage(
            directory=directory,
            database_url=database.url,
            ledger=RunLedger(database),
            source=source,
            target=target,
            stack=stack,
        )
        _start_workers(stage, workers)
        stack.callback(stage.dismiss_workers)
        yield stage


@contextlib.contextmanager
def _chroma_server(directory: Path) -> Iterator[str]:
    directory.mkdir()
    with ChromaServer(directory) as server:
        yield server.endpoint


def _start_workers(stage: Stage, count: int) -> None:
    processes = [
        stage.run("worker", "--until-stdin-closes", log=f"worker-{number}")
        for number in range(1, count + 1)
    ]

    def reported() -> dict[int, str] | None:
        names = stage.ledger.workers()
        return names if len(names) == count else None

    names = stage.wait("the workers to report for work", reported, *processes)
    stage.workers = {names[process.pid]: process for process in processes}


@contextlib.contextmanager
def _logs_on_failure(console: Console, directory: Path) -> Iterator[None]:
    """Show what the processes logged last, before it is deleted."""
    try:
        yield
    except Exception:
        for log in sorted(directory.glob("*.log")):
            for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:]:
                console.print(f"{log.stem}: {line}", style="dim", markup=False)
        raise
