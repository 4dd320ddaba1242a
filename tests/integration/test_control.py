"""A run that is paused waits, one that is cancelled ends; neither loses a chunk under way."""

from __future__ import annotations

import pytest

from coordinator import control
from coordinator.history import purge_history
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


def test_what_is_long_over_goes(database: Database) -> None:
    runs = Runs(database.transaction)

    def ended(verified: bool, days_ago: int) -> object:
        run_id, _ = plan_run(database, ["a"], chunk_size=1)
        part, _ = plan_run(database, ["a"], chunk_size=1, kind="verify", parent=run_id)
        runs.finish(part, status="completed")
        runs.finish(run_id, status="completed", verified=verified)
        with database.connection() as connection:
            connection.execute(
                "UPDATE sync_runs SET created_at = now() - make_interval(days => %(days)s),"
                " finished_at = now() - make_interval(days => %(days)s)"
                " WHERE id = %(run)s OR parent_run_id = %(run)s",
                {"run": run_id, "days": days_ago},
            )
        return run_id

    oldest = [ended(True, 90), ended(False, 80)]
    verified, newest, young = ended(True, 70), ended(False, 60), ended(False, 1)
    add_worker(database, "gone")
    with database.connection() as connection:
        connection.execute(
            "UPDATE sync_workers SET worker_status = 'stopped',"
            " last_heartbeat = now() - interval '60 days'"
        )
    assert purge_history(database, days=30) == 3
    with database.connection() as connection:
        rows = connection.execute("SELECT id FROM sync_runs WHERE parent_run_id IS NULL").fetchall()
        tasks = connection.execute("SELECT DISTINCT run_id FROM sync_tasks").fetchall()
        workers = connection.execute("SELECT count(*) FROM sync_workers").fetchone()
    left = {run_id for (run_id,) in rows}
    assert left == {verified, young}
    assert not {*oldest, newest} & left
    assert len(tasks) == 4  # theirs, and of their parts
    assert workers == (0,)
    assert purge_history(database, days=0.5) == 0  # the newest, and the newest that was verified
