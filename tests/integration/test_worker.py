"""A worker, put together as it runs."""

from __future__ import annotations

from uuid import UUID

import pytest

from coordinator.enqueue import enqueue_plan
from tasks import actors
from tasks.database import Database
from tasks.settings import Settings
from tasks.worker import Worker
from tests.eventually import eventually
from tests.integration.ledger_rows import plan_run


def test_a_verification_is_not_stuck_behind_a_long_copy(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody answers at the addresses of these runs, and each attempt waits a little for somebody.
    monkeypatch.setattr(actors, "STORE_PATIENCE_SECONDS", 0.5)
    copy, _ = plan_run(database, [f"id{n}" for n in range(500)], chunk_size=1)
    proof, _ = plan_run(database, ["a"], chunk_size=1, enqueue=False, kind="verify")
    worker = Worker(Settings(sync_worker_threads=2, sync_retry_backoff=0.1), database)
    worker.start()
    try:
        eventually(lambda: begun(database, copy) > 0)
        enqueue_plan(database.transaction, proof)
        eventually(lambda: begun(database, proof) == 1)
        assert begun(database, copy) < 50
    finally:
        worker.stop()


def begun(database: Database, run_id: UUID) -> int:
    """How many tasks of a run an attempt has begun on."""
    with database.connection() as connection:
        row = connection.execute(
            "SELECT count(*) FROM sync_tasks WHERE run_id = %s AND started_at IS NOT NULL", [run_id]
        ).fetchone()
    assert row is not None
    return int(row[0])
