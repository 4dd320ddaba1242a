"""The ledger: what was planned, tried and done. The truth, whatever the queue delivers.

A task goes `pending` -> `processing` -> `completed` or `failed`, and back to `pending` for a retry
or when its worker is gone. Only the attempt whose token the task carries can take it further, and
only while the lease of its worker runs: a second delivery finds nothing to claim, and a worker that
was thought dead finds that its token is no longer the task's. A task is completed by the very
statement that writes its result, so there is never one without the other, and never two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import orjson
import structlog
from psycopg.types.json import Json

from tasks.chunk import Outcome
from tasks.database import Database, load_queries
from tasks.stores.base import Collection, RecordRefusal

QUERIES = load_queries("ledger")
MAX_RETRIES = 3

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One execution of a task by one worker, with all that it needs to do its work."""

    task_id: int
    token: UUID
    run_id: UUID
    kind: str  # of the run: "sync" or "verify"
    one_way: bool  # what only the target has is let be
    source_endpoint: str
    target_endpoint: str
    source: Collection
    target: Collection | None  # None: verified against a target that has no such collection
    ids: list[str]
    retry_count: int
    is_first: bool  # no attempt before it can have written anything
    target_is_empty: bool  # it was when the run was planned, and no attempt has written this chunk
    may_delete: bool  # the plan counted on it: these ids were only on the target

    @property
    def is_last(self) -> bool:
        """No retry is left after this attempt."""
        return self.retry_count >= MAX_RETRIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How many chunks, and records in them, are in each state."""

    chunks: dict[str, int]
    records: dict[str, int]

    @property
    def planned(self) -> int:
        return sum(self.chunks.values())

    @property
    def completed(self) -> int:
        return self.chunks.get("completed", 0)

    @property
    def failed(self) -> int:
        return self.chunks.get("failed", 0)

    @property
    def is_over(self) -> bool:
        return self.completed + self.failed == self.planned


class Ledger:
    """Reads and writes the ledger. Each method is one transaction.

    Every method may raise `DatabaseUnavailable`, and may then be called again with the same
    arguments: none of them does its work twice.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # Attempts ---------------------------------------------------------------------------------

    def claim(self, task_id: int, *, worker_id: str, token: UUID | None = None) -> Attempt | None:
        """Begin an attempt, or None if the task does not wait for one (or the lease is lost)."""
        token = token or uuid4()
        with self._database.connection() as connection:
            row = connection.execute(
                QUERIES["claim_task"],
                {"task_id": task_id, "worker_id": worker_id, "token": token},
            ).fetchone()
        if row is None:
            return None
        run_id, kind, one_way, source_endpoint, target_endpoint, source, target, ids, *rest = row
        retry_count, attempts, target_is_empty, may_delete = rest
        return Attempt(
            task_id=task_id,
            token=token,
            run_id=run_id,
            kind=kind,
            one_way=one_way,
            source_endpoint=source_endpoint,
            target_endpoint=target_endpoint,
            source=Collection.from_json(source),
            target=Collection.from_json(target) if target else None,
            ids=[str(id_, "utf-8") for id_ in ids],
            retry_count=retry_count,
            is_first=attempts == 1,
            target_is_empty=target_is_empty,
            may_delete=may_delete,
        )

    def may_work(self, worker_id: str) -> bool:
        """Whether the lease of this worker runs; without it, it can claim nothing."""
        with self._database.connection() as connection:
            row = connection.execute(QUERIES["lease_runs"], {"worker_id": worker_id}).fetchone()
        return row == (True,)

    def is_held(self, task_id: int) -> bool:
        """Whether the task waits for its run, which is paused."""
        with self._database.connection() as connection:
            row = connection.execute(QUERIES["is_held"], {"task_id": task_id}).fetchone()
        return row == (True,)

    def record(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Complete the task with its result; False if the attempt no longer holds it.

        Such a late result is counted in `sync_runs.duplicates_suppressed`.
        """
        key = {"task_id": attempt.task_id, "token": attempt.token}
        # Not in one transaction: a worker that is paused within one would keep its locks, and who
        # would release its tasks would wait for it.
        with self._database.connection() as connection:
            values = outcome.counts() | {
                "source_digest": outcome.source_digest,
                "target_digest": outcome.target_digest,
                "alike_digest": outcome.alike_digest,
                "positions": [position for position, _ in outcome.unproven],
                "digests": [digest for _, digest in outcome.unproven],
                "findings": Json(outcome.findings, dumps=orjson.dumps),
                "seconds": outcome.seconds,
            }
            if connection.execute(QUERIES["record_result"], key | values).rowcount:
                return True
            # Recorded before, and the answer was lost?
            if connection.execute(QUERIES["recorded_by"], key).fetchone() == (True,):
                return True
            connection.execute(QUERIES["count_suppressed"], key)
        logger.warning("late result suppressed", task=attempt.task_id)
        return False

    def retry(self, attempt: Attempt, error: str) -> bool:
        """Let the task wait for its next attempt; False if this one no longer holds it."""
        return self._leave(attempt, "retry_task", error=_storable(error))

    def fail(self, attempt: Attempt, error: str, refused: Sequence[RecordRefusal] = ()) -> bool:
        """Set the task aside with the reason; False if the attempt no longer holds it."""
        listed = [[one.id, one.reason] for one in refused]
        return self._leave(
            attempt,
            "fail_task",
            error=_storable(error),
            refused=Json(listed, dumps=orjson.dumps) if listed else None,
        )

    def release(self, attempt: Attempt) -> bool:
        """Give the task back unfinished, because the worker stops."""
        return self._leave(attempt, "release_task")

    def _leave(self, attempt: Attempt, query: str, **values: object) -> bool:
        key = {"task_id": attempt.task_id, "token": attempt.token}
        with self._database.connection() as connection:
            return connection.execute(QUERIES[query], key | values).rowcount == 1

    # What has become of a run -------------------------------------------------------------------

    def progress(self, run_id: UUID) -> Progress:
        """Chunks and records of a run by status."""
        with self._database.connection() as connection:
            rows = connection.execute(QUERIES["progress"], {"run_id": run_id}).fetchall()
        return Progress(
            chunks={status: int(chunks) for status, chunks, _ in rows},
            records={status: int(records) for status, _, records in rows},
        )

    def failures(self, run_id: UUID) -> list[dict[str, Any]]:
        """The failed tasks of a run: where, why, and which records were refused."""
        with self._database.connection() as connection:
            rows = connection.execute(QUERIES["failed_tasks"], {"run_id": run_id}).fetchall()
        return [
            {
                "task_id": task_id,
                "collection": name,
                "start": start,
                "end": end,
                "error": error,
                "refused": [{"id": id_, "reason": reason} for id_, reason in refused or ()],
            }
            for task_id, name, start, end, error, refused in rows
        ]


def _storable(text: str) -> str:
    """Postgres text holds no NUL."""
    return text.replace("\x00", "\\x00")
