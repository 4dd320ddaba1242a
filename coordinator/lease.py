"""The right to coordinate: a row in Postgres with a term that only grows.

Of all coordinators on one pair of source and target, the one that holds the lease leads. It renews
the lease from a thread; when it dies the lease runs out, and another takes it with the next term.

A clock cannot tell a leader that it was paused until long after it has been replaced. So it is
not the clock that keeps two leaders apart: each transaction of a leader ends by looking whether its
term is still the lease's, and locks the row until it has committed. If another took the lease
meanwhile the term is another, and the transaction is rolled back; if one wants to, it waits.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import structlog

from tasks.database import Connection, Database, load_queries
from tasks.errors import DatabaseUnavailable, LeaseLost, RunBusy, Stopped

QUERIES = load_queries("plan")
RETAKE_SECONDS = 0.5  # between two tries to take a lease that another holds

logger = structlog.get_logger(__name__)


class Lease:
    """A lease that is held, and renewed by a thread until it is released or lost."""

    def __init__(
        self, database: Database, *, name: str, holder: str, term: int, seconds: float
    ) -> None:
        self.term = term
        self._database = database
        self._arguments = {"name": name, "holder": holder, "term": term, "seconds": seconds}
        self._seconds = seconds
        self._lost = threading.Event()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> threading.Event:
        """Set as soon as it is known that another coordinator leads."""
        return self._lost

    def check(self) -> None:
        """Raise `LeaseLost` if it is known that another coordinator leads by now."""
        if self._lost.is_set():
            raise LeaseLost("Another coordinator has taken over this source and target.")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that commits only if the lease is still held. Raises `LeaseLost`.

        Looked at last, not first: the lock must not keep the lease from being renewed while a long
        plan is written.
        """
        with self._database.transaction() as connection:
            yield connection
            if connection.execute(QUERIES["lock_lease"], self._arguments).fetchone() is None:
                self._lost.set()
                self.check()

    def _keep(self) -> None:
        while not self._released.wait(self._seconds / 4):
            try:
                with self._database.connection() as connection:
                    cursor = connection.execute(QUERIES["renew_lease"], self._arguments)
                if cursor.rowcount == 0:
                    self._lost.set()
                    return
            except DatabaseUnavailable as error:
                # Nobody can take it while Postgres is away.
                logger.warning("cannot renew the lease", reason=str(error))
            except Exception:
                logger.exception("cannot renew the lease")

    def release(self) -> None:
        """Let the next coordinator have it at once."""
        self._released.set()
        self._thread.join(timeout=2)
        with contextlib.suppress(DatabaseUnavailable), self._database.connection() as connection:
            connection.execute(QUERIES["release_lease"], self._arguments)


@contextlib.contextmanager
def held_lease(
    database: Database,
    name: str,
    *,
    holder: str,
    seconds: float,
    patience: float,
    waiting: Callable[[], None] = lambda: None,
    stopping: threading.Event | None = None,
) -> Iterator[Lease]:
    """Hold the lease `name`. Raises `RunBusy` if another holder keeps it for `patience` seconds,
    and `Stopped` as soon as `stopping` is set while we wait.

    A holder that was killed cannot give its lease back, so one that is taken is worth waiting for
    at least as long as it runs. `waiting` is called once, before.
    """
    arguments = {"name": name, "holder": holder, "seconds": seconds}
    deadline = time.monotonic() + patience
    told = False
    while (term := _take(database, arguments)) is None:
        if time.monotonic() > deadline:
            raise RunBusy(
                "Another chroma-sync is at work on this source and target; "
                "wait for it, or look with `chroma-sync status`."
            )
        if not told:
            waiting()
            told = True
        if stopping is None:
            time.sleep(RETAKE_SECONDS)
        elif stopping.wait(RETAKE_SECONDS):
            raise Stopped("Stopped while another coordinator led.")
    lease = Lease(database, name=name, holder=holder, term=term, seconds=seconds)
    try:
        yield lease
    finally:
        lease.release()


def _take(database: Database, arguments: dict[str, object]) -> int | None:
    with database.connection() as connection:
        row = connection.execute(QUERIES["take_lease"], arguments).fetchone()
    return None if row is None else int(row[0])
