"""Runs that are long over, and what hangs on them, go; the tables would grow for ever."""

from __future__ import annotations

import time

from coordinator.totals import count_ended
from tasks.database import Database, load_queries

QUERIES = load_queries("history")
_COUNT_SECONDS = 10.0
_AT_ONCE = 10  # runs in a transaction: each takes its tasks and results with it


def purge_history(database: Database, *, days: float) -> int:
    """Delete runs that ended so long ago, and workers that are gone; returns how many runs.

    Of each source and target the newest run stays, and the newest that was verified.
    """
    # First, so that no total falls because of what goes.
    count_ended(database, until=time.monotonic() + _COUNT_SECONDS)
    deleted = 0
    while True:
        with database.connection() as connection:
            cursor = connection.execute(QUERIES["delete_runs"], {"days": days, "at_once": _AT_ONCE})
        deleted += cursor.rowcount
        if cursor.rowcount < _AT_ONCE:
            break
    with database.connection() as connection:
        connection.execute(QUERIES["delete_workers"], {"days": days})
    return deleted
