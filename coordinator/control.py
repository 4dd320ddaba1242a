"""Holding, releasing and cancelling a run from outside, whoever leads it."""

from __future__ import annotations

from uuid import UUID

from tasks.database import Database, load_queries
from tasks.listener import notify

QUERIES = load_queries("plan")


def pause(database: Database, run_id: UUID) -> bool:
    """Let the chunks of a run wait; those under way are finished. False if the run has ended."""
    with database.transaction() as connection:
        rows = connection.execute(
            QUERIES["pause_run"], {"run_id": run_id, "paused": True}
        ).fetchall()
        parts = [part for (part,) in rows]
        connection.execute(QUERIES["pause_messages"], {"run_ids": parts})
    return bool(parts)


def resume(database: Database, run_id: UUID) -> bool:
    """Let a run that was paused go on. False if the run has ended."""
    with database.transaction() as connection:
        rows = connection.execute(
            QUERIES["pause_run"], {"run_id": run_id, "paused": False}
        ).fetchall()
        parts = [part for (part,) in rows]
        queues = connection.execute(QUERIES["resume_messages"], {"run_ids": parts}).fetchall()
        notify(connection, {str(queue) for (queue,) in queues})
    return bool(parts)


def cancel(database: Database, run_id: UUID) -> bool:
    """End a run; chunks under way are finished, no other is begun. False if it has ended.

    Whoever waits for it is told when it looks next. What was written stays.
    """
    with database.transaction() as connection:
        rows = connection.execute(QUERIES["cancel_run"], {"run_id": run_id}).fetchall()
        parts = [part for (part,) in rows]
        connection.execute(QUERIES["cancel_messages"], {"run_ids": parts})
    return bool(parts)
