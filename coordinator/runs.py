"""The rows of runs: opened, resumed and ended by a coordinator, under its lease.

A run goes `planning` -> `running` -> `verifying` -> `completed` or `failed`; one whose coordinator
was stopped is `interrupted` until it is resumed. One that has ended stays as it ended, unless
`chroma-sync retry` opens it again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import orjson
from psycopg.types.json import Json, Jsonb

from tasks.database import Connection, load_queries

QUERIES = load_queries("plan")

# Opens the transaction of a write: a leader's own is refused once it leads no more.
Transaction = Callable[[], AbstractContextManager[Connection]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """What is known of a run before it is planned. The URLs hold no secrets."""

    kind: str  # "sync" or "verify"
    source_url: str
    target_url: str
    source_endpoint: str
    target_endpoint: str
    queue_name: str
    options: dict[str, Any]
    one_way: bool = False
    pair: str | None = None  # of a schedule
    parent_run_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedRun:
    run_id: UUID
    status: str
    options: dict[str, Any]


class Runs:
    """Writes the rows of runs, each in a transaction of its own."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def create(self, run: NewRun) -> UUID:
        """Open a run in status `planning`."""
        with self._transaction() as connection:
            values = asdict(run) | {"options": Jsonb(run.options)}
            row = connection.execute(QUERIES["create_run"], values).fetchone()
        assert row is not None
        return UUID(str(row[0]))

    def set_status(self, run_id: UUID, status: str, error: str | None = None) -> None:
        """Move a run that has not ended to another status."""
        with self._transaction() as connection:
            connection.execute(
                QUERIES["set_run_status"], {"run_id": run_id, "status": status, "error": error}
            )
            if status == "interrupted":
                connection.execute(QUERIES["end_parts"], {"run_id": run_id})

    def finish(
        self,
        run_id: UUID,
        *,
        status: str,
        verified: bool | None = None,
        report: dict[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        """End a run as `completed` or `failed`. One that has ended stays as it ended.

        Manifests that nobody will need again go.
        """
        with self._transaction() as connection:
            connection.execute(
                QUERIES["finish_run"],
                {
                    "run_id": run_id,
                    "status": status,
                    "verified": verified,
                    "report": Json(report, dumps=orjson.dumps) if report else None,
                    "error": error,
                },
            )
            connection.execute(QUERIES["end_parts"], {"run_id": run_id})
            connection.execute(QUERIES["discard_manifests"], {"run_id": run_id})
            connection.execute(QUERIES["discard_unproven"])

    def unfinished(self, source_url: str, target_url: str) -> UnfinishedRun | None:
        """The newest sync of this pair, if it has not ended."""
        with self._transaction() as connection:
            row = connection.execute(
                QUERIES["newest_run"], {"source_url": source_url, "target_url": target_url}
            ).fetchone()
        if row is None or row[1] in ("completed", "failed", "cancelled"):
            return None
        return UnfinishedRun(run_id=row[0], status=row[1], options=row[2])

    def status(self, run_id: UUID) -> str:
        """The status of a run."""
        with self._transaction() as connection:
            row = connection.execute(QUERIES["run_status"], {"run_id": run_id}).fetchone()
        assert row is not None
        return str(row[0])

    def kind(self, run_id: UUID) -> str:
        """What people call the run: "sync", "copy", "repair" or "verify"."""
        with self._transaction() as connection:
            row = connection.execute(QUERIES["run_kind"], {"run_id": run_id}).fetchone()
        assert row is not None
        return str(row[0])

    def has_manifest(self, run_id: UUID) -> bool:
        """Whether ids of the run are still kept."""
        with self._transaction() as connection:
            row = connection.execute(QUERIES["has_manifest"], {"run_id": run_id}).fetchone()
        return row == (True,)

    def passes(self, run_id: UUID) -> list[UUID]:
        """The further passes of a sync, oldest first."""
        with self._transaction() as connection:
            rows = connection.execute(QUERIES["passes"], {"run_id": run_id}).fetchall()
        return [row[0] for row in rows]

    def newest_verification(self, run_id: UUID) -> UUID | None:
        """The last verification of a sync, or the run itself if it is one."""
        with self._transaction() as connection:
            row = connection.execute(QUERIES["newest_verification"], {"run_id": run_id}).fetchone()
        return row[0] if row else None

    def reopen(self, run_id: UUID) -> bool:
        """Take up a run that has ended, to try its failed chunks again; False if it cannot be."""
        with self._transaction() as connection:
            cursor = connection.execute(QUERIES["reopen_run"], {"run_id": run_id})
        return cursor.rowcount == 1

    def point(
        self, run_id: UUID, *, source_endpoint: str, target_endpoint: str, queue_name: str
    ) -> None:
        """Let a run that is taken up again use the addresses and the queue of now."""
        arguments = {
            "run_id": run_id,
            "source_endpoint": source_endpoint,
            "target_endpoint": target_endpoint,
            "queue_name": queue_name,
        }
        with self._transaction() as connection:
            connection.execute(QUERIES["resume_run"], arguments)
            connection.execute(QUERIES["move_messages"], arguments)
