"""The one listening connection of a process: NOTIFY wakes consumers, which poll as well."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable

import structlog
from psycopg import sql

from tasks.database import Connection, Database, load_queries
from tasks.errors import DatabaseUnavailable

QUERIES = load_queries("queue")
POLL_SECONDS = 1.0

logger = structlog.get_logger(__name__)


class Listener(threading.Thread):
    """The one listening connection of a process: turns notifications into wake-ups."""

    def __init__(
        self, database: Database, queues: Callable[[], Iterable[str]], wake: Callable[[str], None]
    ) -> None:
        super().__init__(name="listener", daemon=True)
        self._database = database
        self._queues = queues
        self._wake = wake
        self._closing = False
        self._is_listening = False

    def close(self) -> None:
        self._closing = True
        if self._is_listening:
            # So it hears of its end at once. Not if Postgres is away: that would take longer.
            with (
                contextlib.suppress(DatabaseUnavailable),
                self._database.connection() as connection,
            ):
                notify(connection, self._queues())
        self.join(timeout=2)

    def run(self) -> None:
        while not self._closing:
            try:
                self._listen()
            except Exception as error:
                self._is_listening = False
                # Consumers poll meanwhile.
                logger.warning("listening connection lost", reason=type(error).__name__)
                time.sleep(POLL_SECONDS)

    def _listen(self) -> None:
        with self._database.connect() as connection:
            listening: set[str] = set()
            while not self._closing:
                for queue_name in set(self._queues()) - listening:
                    name = sql.Identifier(channel(queue_name))
                    connection.execute(sql.SQL("LISTEN {}").format(name))
                    listening.add(queue_name)
                    self._is_listening = True
                    self._wake(queue_name)
                for notice in connection.notifies(timeout=POLL_SECONDS / 2, stop_after=1):
                    self._wake(notice.channel.split(".", 1)[1].rsplit(".", 1)[0])


def channel(queue_name: str) -> str:
    """The notification channel of a queue, as dramatiq-pg names it."""
    return f"dramatiq.{queue_name}.enqueue"


def notify(connection: Connection, queue_names: Iterable[str]) -> None:
    """Wake the consumers of these queues, once the transaction commits."""
    for queue_name in sorted(queue_names):
        connection.execute(QUERIES["notify"], {"channel": channel(queue_name)})
