"""Worker processes: their lease, its renewal, and what happens to what a dead worker held.

A worker's claims, on messages and on tasks, are its own for as long as its lease runs. A thread
of its own renews the lease, so that a busy actor does not delay it. Each beat also buries workers
whose lease ran out: in one transaction they are marked dead and all they held waits for another.
A worker that was paused past its lease finds that it cannot renew; it gives back whatever is still
in its name and takes a new lease with the next term. What it was working on has lost its token by
then, so the ledger refuses the late result.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence

import psutil
import structlog

from tasks.broker import purge
from tasks.database import Connection, Database, load_queries
from tasks.errors import DatabaseUnavailable
from tasks.listener import notify

PURGE_INTERVAL = 60.0  # seconds between two looks for old messages

QUERIES = load_queries("workers")

logger = structlog.get_logger(__name__)


def new_worker_id() -> str:
    """A name that no other process has had: host, process id, six random digits."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def live_workers(database: Database, queue_name: str) -> int:
    """How many workers with a running lease consume this queue."""
    with database.connection() as connection:
        row = connection.execute(QUERIES["live"], {"queue_name": queue_name}).fetchone()
    return int(row[0]) if row else 0


def count_live_pids(database: Database, pids: Sequence[int]) -> int:
    """How many of these processes of this machine are workers with a running lease."""
    arguments = {"hostname": socket.gethostname(), "pids": list(pids)}
    with database.connection() as connection:
        row = connection.execute(QUERIES["live_pids"], arguments).fetchone()
    return int(row[0]) if row else 0


def bury_dead_workers(database: Database) -> list[str]:
    """Mark workers whose lease ran out as dead, and release what they held. Returns their ids."""
    with database.transaction() as connection:
        rows = connection.execute(QUERIES["bury"]).fetchall()
        dead = [str(row[0]) for row in rows]
        if dead:
            _release(connection, dead, lost=1)
        orphans = connection.execute(QUERIES["release_orphans"]).fetchall()
        notify(connection, {str(queue_name) for (queue_name,) in orphans})
    if dead:
        logger.warning("workers died; their work goes to others", workers=dead)
    return dead


def _release(connection: Connection, worker_ids: list[str], *, lost: int) -> None:
    arguments = {"worker_ids": worker_ids, "lost": lost}
    connection.execute(QUERIES["release_tasks"], arguments)
    released = connection.execute(QUERIES["release_messages"], arguments).fetchall()
    notify(connection, {str(queue_name) for (queue_name,) in released})


class Heartbeat:
    """Registers this process as a worker, keeps its lease, and buries the dead."""

    def __init__(
        self,
        database: Database,
        *,
        worker_id: str,
        queues: Sequence[str],
        lease: float,
        current_task: Callable[[], int | None] = lambda: None,
        message_retention: float = 3600,
    ) -> None:
        self._database = database
        self._worker_id = worker_id
        self._queues = list(queues)
        self._lease = lease
        self._current_task = current_task
        self._message_retention = message_retention
        self._process = psutil.Process()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Take the lease, then keep it. Raises `DatabaseUnavailable` if it cannot be taken."""
        self._process.cpu_percent()  # the first call only starts the measurement
        with self._database.connection() as connection:
            self._register(connection)
        self._thread.start()

    def stop(self) -> None:
        """Give the lease back at once, with all that is still held."""
        self._stopping.set()
        self._thread.join(timeout=2)
        try:
            with self._database.transaction() as connection:
                connection.execute(QUERIES["stop"], {"worker_id": self._worker_id})
                _release(connection, [self._worker_id], lost=0)
        except DatabaseUnavailable as error:
            logger.warning("cannot give the lease back; it will run out", reason=str(error))

    def _run(self) -> None:
        next_purge = time.monotonic()
        while not self._stopping.wait(self._lease / 4):
            try:
                self._beat()
                bury_dead_workers(self._database)
                if time.monotonic() >= next_purge:
                    purge(self._database, age=self._message_retention)
                    next_purge = time.monotonic() + PURGE_INTERVAL
            except DatabaseUnavailable as error:
                logger.warning("heartbeat failed", reason=str(error))
            except Exception:
                # The thread must not die: a worker without heartbeat loses its work for ever.
                logger.exception("heartbeat failed")

    def _beat(self) -> None:
        with self._database.transaction() as connection:
            cursor = connection.execute(
                QUERIES["renew"],
                {
                    "worker_id": self._worker_id,
                    "memory": self._process.memory_info().rss / 2**20,
                    "cpu": self._process.cpu_percent(),
                    "task_id": self._current_task(),
                },
            )
            if cursor.rowcount == 0:
                logger.warning("the lease was lost; taking a new one", worker=self._worker_id)
                _release(connection, [self._worker_id], lost=1)
                self._register(connection)

    def _register(self, connection: Connection) -> None:
        connection.execute(
            QUERIES["register"],
            {
                "worker_id": self._worker_id,
                "lease": self._lease,
                "hostname": socket.gethostname(),
                "pid": os.getpid(),
                "queues": self._queues,
            },
        )
