"""A run that is paused waits, one that is cancelled ends; neither loses a chunk under way."""

from __future__ import annotations

import pytest

from coordinator import control
from coordinator.runs import Runs
from tasks.broker import PostgresBroker
from tasks.database import Database
from tasks.ledger import Ledger
from tests.integration.ledger_rows import OUTCOME, add_worker, plan_run


def deliverable(database: Database) -> int:
    with database.connection() as connection:
        row = connection.execute(
            "SELECT count(*) FROM dramatiq.queue WHERE state = 'queued' AND due_at <= now()"
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_paused_run_waits_and_goes_on(database: Database) -> None:
    ledger = Ledger(database)
    add_worker(database, "w")
    run_id, (first, second, _) = plan_run(database, ["a", "b", "c"], chunk_size=1)
    under_way = ledger.claim(first, worker_id="w")
    assert under_way is not None
    assert control.pause(database, run_id)
    assert deliverable(database) == 0
    assert ledger.claim(second, worker_id="w") is None
    assert ledger.is_held(second)
    assert ledger.record(under_way, OUTCOME)  # what was under way is finished
    assert control.resume(database, run_id)
    assert deliverable(database) == 3
    assert not ledger.is_held(second)
    assert ledger.claim(second, worker_id="w") is not None


def test_a_part_of_a_paused_run_begins_paused(database: Database) -> None:
    run_id, _ = plan_run(database, ["a"], chunk_size=1)
    control.pause(database, run_id)
    child, (task_id,) = plan_run(database, ["a"], chunk_size=1, kind="verify", parent=run_id)
    add_worker(database, "w")
    assert Ledger(database).claim(task_id, worker_id="w") is None
    assert control.resume(database, run_id)
    assert Ledger(database).claim(task_id, worker_id="w") is not None
    assert Runs(database.transaction).status(child) == "running"


def test_a_cancelled_run_ends(database: Database) -> None:
    ledger, runs = Ledger(database), Runs(database.transaction)
    add_worker(database, "w")
    run_id, (first, second) = plan_run(database, ["a", "b"], chunk_size=1)
    under_way = ledger.claim(first, worker_id="w")
    assert under_way is not None
    assert control.cancel(database, run_id)
    assert runs.status(run_id) == "cancelled"
    assert deliverable(database) == 0
    assert ledger.claim(second, worker_id="w") is None
    assert ledger.record(under_way, OUTCOME)
    runs.finish(run_id, status="completed")
    runs.set_status(run_id, "interrupted")
    assert runs.status(run_id) == "cancelled"
    assert runs.unfinished("http://127.0.0.1:9", "http://127.0.0.1:9/target") is None


@pytest.mark.parametrize("act", [control.pause, control.resume, control.cancel])
def test_a_run_that_has_ended_stays_so(database: Database, act: object) -> None:
    assert callable(act)
    run_id, _ = plan_run(database, ["a"], chunk_size=1)
    Runs(database.transaction).finish(run_id, status="completed")
    assert not act(database, run_id)


def test_a_broker_without_room_claims_nothing(database: Database) -> None:
    add_worker(database, "w")
    plan_run(database, ["a"], chunk_size=1)
    room = False
    broker = PostgresBroker(database, worker_id="w", may_claim=lambda: room)
    broker.declare_queue("sync")
    consumer = broker.consume("sync", prefetch=1, timeout=50)
    assert next(consumer) is None
    room = True
    assert next(consumer) is not None
    consumer.close()
    broker.close()
