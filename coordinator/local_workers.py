"""Worker processes on this machine, for the time of a run.

    this process -- forks --> the foreman -- forks --> the workers

A worker that is forked has everything imported already, where one that is started anew spends most
of a second of processor time on that, as long as on twenty chunks. Only a process that has no
threads may be forked, and this one soon has some. So it forks a foreman before that, which does
nothing but start workers, replace those that die, and stop them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TypeAlias

import structlog

from tasks.database import Database
from tasks.errors import WorkersFailed
from tasks.workers import count_live_pids

READY_SECONDS = 15.0
STOP_SECONDS = 4.0  # then by force
MAX_FAILURES = 5  # workers that ended by an error, not by a signal, in one run

# What a worker does: given the queue, and a file descriptor. When the other end of that is closed,
# it is to stop. Gives the exit code.
Work: TypeAlias = Callable[[str, int], int]

_FORK = multiprocessing.get_context("fork")
_Process: TypeAlias = multiprocessing.context.ForkProcess

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    count: int
    queue_name: str
    environ: Mapping[str, str]


class LocalWorkers:
    """The workers of this machine, as the process sees them that they work for.

    When it is gone, however it went, its pipe to the foreman closes, and all of them stop.
    """

    def __init__(self, work: Work) -> None:
        """Fork the foreman of workers that do this work. The process must have no threads yet."""
        self._foreman, theirs = _FORK.Pipe()
        self._process = _FORK.Process(target=_oversee, args=[theirs, self._foreman, work])
        self._process.start()
        theirs.close()
        self._pids: list[int] = []

    def start(self, count: int, *, queue_name: str, environ: Mapping[str, str]) -> None:
        """Have so many started, with these variables in their environment."""
        with contextlib.suppress(BrokenPipeError):  # then `check` says it
            self._foreman.send(_Order(count=count, queue_name=queue_name, environ=environ))

    def wait_until_ready(self, database: Database) -> int:
        """Wait until all have a lease, but not for ever; returns how many have."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            self.check()
            ready = count_live_pids(database, self._pids)
            if ready == len(self._pids) > 0 or time.monotonic() > deadline:
                return ready
            time.sleep(0.02)

    def check(self) -> None:
        """Hear what the foreman has to say.

        Raises `WorkersFailed` if workers end with an error of their own, again and again: one that
        was killed is replaced for ever, one that cannot work would be too.
        """
        try:
            while self._foreman.poll():
                news = self._foreman.recv()
                if isinstance(news, WorkersFailed):
                    raise news
                self._pids = news
        except (EOFError, ConnectionError):
            raise WorkersFailed(
                "The process that starts the local workers is gone, and they with it; "
                "the same command goes on from here."
            ) from None

    def dismiss(self) -> None:
        """Let all of them stop; nothing is left for them to do. Does not wait for it."""
        self._foreman.close()

    def close(self) -> None:
        """Stop all of them, and wait for it. May be called again."""
        self.dismiss()
        self._process.join()


def _oversee(coordinator: Connection, not_ours: Connection, work: Work) -> None:
    """Be the foreman, until the coordinator closes its end of the pipe, or has gone."""
    not_ours.close()
    # A Ctrl-C in the terminal is for the coordinator, which then stops its workers; and nobody
    # reads or writes in its stead.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    with contextlib.suppress(EOFError, ConnectionError):
        order = coordinator.recv()
        with _Crew(order, work, coordinator) as crew:
            crew.oversee()


class _Crew:
    """The workers that one order asks for. When it is left, they are stopped."""

    def __init__(self, order: _Order, work: Work, coordinator: Connection) -> None:
        self._order = order
        self._work = work
        self._coordinator = coordinator
        self._failures = 0
        # The only end for writing is the foreman's: all workers see it close, whatever ends it.
        self._go_on, self._keep_open = _FORK.Pipe(duplex=False)
        self._processes: list[_Process] = []

    def __enter__(self) -> _Crew:
        self._processes += [self._start() for _ in range(self._order.count)]
        return self

    def __exit__(self, *_: object) -> None:
        self._keep_open.close()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()

    def oversee(self) -> None:
        """Replace those that die, until the coordinator has nothing more to do."""
        while True:
            self._coordinator.send([process.pid for process in self._processes])
            ended = wait([self._coordinator, *(process.sentinel for process in self._processes)])
            if self._coordinator in ended:
                return
            for place, process in enumerate(self._processes):
                if process.sentinel in ended and not self._replace(place, process):
                    return

    def _replace(self, place: int, process: _Process) -> bool:
        process.join()
        code = process.exitcode or 0
        if code > 0:
            self._failures += 1
        if self._failures > MAX_FAILURES:
            what = f"Local workers end with code {code} again and again; see their messages above."
            self._coordinator.send(WorkersFailed(what))
            return False
        logger.warning("a local worker ended; starting another", code=code)
        self._processes[place] = self._start()
        return True

    def _start(self) -> _Process:
        process = _FORK.Process(target=self._be_a_worker)
        process.start()
        return process

    def _be_a_worker(self) -> None:
        self._keep_open.close()
        self._coordinator.close()
        os.environ.update(self._order.environ)
        raise SystemExit(self._work(self._order.queue_name, self._go_on.fileno()))
