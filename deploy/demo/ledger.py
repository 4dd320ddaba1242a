"""What the demo reads in the ledger, the way an operator would: by SQL on its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tasks.database import Database

# Beside the sync there is a verification, a run of its own with tasks of its own.
_PROGRESS = """
SELECT count(*) FILTER (WHERE task_status = 'completed'), count(*)
  FROM sync_tasks t JOIN sync_runs r ON r.id = t.run_id
 WHERE r.kind = 'sync'
"""
_WORKERS = """
SELECT pid, worker_id FROM sync_workers WHERE worker_status = 'active'
"""
_BUSIEST = """
SELECT worker_id
  FROM sync_tasks
 WHERE task_status = 'processing'
 GROUP BY worker_id
 ORDER BY count(*) DESC, worker_id
 LIMIT 1
"""
_HELD = """
SELECT id, chunk_start_offset, chunk_end_offset, clock_timestamp()
  FROM sync_tasks
 WHERE worker_id = %(worker_id)s AND task_status = 'processing'
 ORDER BY chunk_start_offset
"""
_RECOVERED = """
SELECT t.worker_id, t.completed_at, r.unchanged, r.added
  FROM sync_tasks t JOIN sync_results r ON r.task_id = t.id
 WHERE t.id = ANY (%(task_ids)s) AND t.task_status = 'completed'
"""
_COMPLETED = """
SELECT worker_id, count(*)
  FROM sync_tasks t JOIN sync_runs r ON r.id = t.run_id
 WHERE r.kind = 'sync' AND task_status = 'completed'
 GROUP BY worker_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Chunks that a worker is at work on: task ids, their slices, and when that was so."""

    task_ids: Sequence[int]
    slices: Sequence[tuple[int, int]]
    seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How chunks that a dead worker left were completed after all."""

    worker_ids: Sequence[str]  # who did, without repetition
    seconds: float  # from the death to the last of them
    unchanged: int  # records that the dead worker had written, but not reported
    added: int  # records that it had not


class RunLedger:
    """The ledger of the one sync in this database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def progress(self) -> tuple[int, int]:
        """Chunks completed, and chunks in all (0 until the run is planned)."""
        with self._database.connection() as connection:
            row = connection.execute(_PROGRESS).fetchone()
        assert row is not None
        return row[0], row[1]

    def workers(self) -> dict[int, str]:
        """The name of each active worker, by process id."""
        with self._database.connection() as connection:
            return {row[0]: row[1] for row in connection.execute(_WORKERS)}

    def busiest(self) -> str | None:
        """The worker that is at work on most chunks, if any is."""
        with self._database.connection() as connection:
            row = connection.execute(_BUSIEST).fetchone()
        return row[0] if row else None

    def held(self, worker_id: str) -> Held | None:
        """What this worker is at work on, if anything."""
        with self._database.connection() as connection:
            rows = connection.execute(_HELD, {"worker_id": worker_id}).fetchall()
        if not rows:
            return None
        return Held(
            task_ids=[row[0] for row in rows],
            slices=[(row[1], row[2]) for row in rows],
            seen_at=rows[0][3],
        )

    def recovery(self, held: Held) -> Recovery | None:
        """How what was held was completed, once all of it is."""
        with self._database.connection() as connection:
            rows = connection.execute(_RECOVERED, {"task_ids": list(held.task_ids)}).fetchall()
        if len(rows) < len(held.task_ids):
            return None
        return Recovery(
            worker_ids=sorted({row[0] for row in rows}),
            seconds=(max(row[1] for row in rows) - held.seen_at).total_seconds(),
            unchanged=sum(row[2] for row in rows),
            added=sum(row[3] for row in rows),
        )

    def completed(self) -> dict[str, int]:
        """How many chunks each worker completed."""
        with self._database.connection() as connection:
            return {row[0]: row[1] for row in connection.execute(_COMPLETED)}
