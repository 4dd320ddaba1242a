"""The ledger, against real SQL: one result for each completed task, whatever is delivered."""

from __future__ import annotations

import dataclasses
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from coordinator.enqueue import enqueue_plan, resend_lost, retry_failed
from coordinator.runs import Runs
from coordinator.verify import prove_ledger
from tasks.database import Database
from tasks.errors import RunNotFound
from tasks.ledger import Attempt, Ledger
from tasks.stores.base import RecordRefusal
from tasks.workers import bury_dead_workers
from tests.integration.ledger_rows import OUTCOME, add_worker, end_lease, plan_run


def task(database: Database, task_id: int) -> dict[str, object]:
    with database.connection() as connection:
        cursor = connection.execute("SELECT * FROM sync_tasks WHERE id = %s", [task_id])
        assert cursor.description is not None
        row = cursor.fetchone()
        assert row is not None
        return dict(zip([column.name for column in cursor.description], row, strict=True))


def scalar(database: Database, query: str) -> object:
    with database.connection() as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def claimed(ledger: Ledger, task_id: int, worker_id: str = "w") -> Attempt:
    attempt = ledger.claim(task_id, worker_id=worker_id)
    assert attempt is not None
    return attempt


def test_a_plan_is_enqueued_whole_once(database: Database) -> None:
    run_id, tasks = plan_run(database, [f"id{n}" for n in range(1000)], chunk_size=1)
    assert len(tasks) == 1000
    assert scalar(database, "SELECT count(*) FROM dramatiq.queue") == 1000
    assert (
        scalar(
            database,
            "SELECT count(*) FROM dramatiq.queue q JOIN sync_tasks t USING (message_id)"
            " WHERE q.message->'args' = jsonb_build_array(t.id)",
        )
        == 1000
    )
    with pytest.raises(RunNotFound):
        enqueue_plan(database.transaction, run_id)
    assert scalar(database, "SELECT count(*) FROM sync_tasks") == 1000


def test_an_attempt_brings_its_ids_whatever_is_in_them(database: Database) -> None:
    ids = ["plain", "ünïcödé 🚀", "nul \x00 inside", "new\nline", " ", "x" * 10_000]
    _, (task_id,) = plan_run(database, ids, chunk_size=10)
    add_worker(database, "w")
    assert claimed(Ledger(database), task_id).ids == ids


def test_a_second_delivery_finds_nothing_to_do(database: Database) -> None:
    ledger = Ledger(database)
    _, (task_id,) = plan_run(database, ["a"], chunk_size=1)
    add_worker(database, "w")
    attempt = claimed(ledger, task_id)
    assert ledger.claim(task_id, worker_id="w") is None
    assert ledger.record(attempt, OUTCOME)
    assert ledger.claim(task_id, worker_id="w") is None
    assert task(database, task_id)["task_status"] == "completed"


def test_a_claim_and_a_record_may_be_asked_again_after_a_lost_answer(database: Database) -> None:
    ledger = Ledger(database)
    _, (task_id,) = plan_run(database, ["a"], chunk_size=1)
    add_worker(database, "w")
    token = uuid4()
    first = ledger.claim(task_id, worker_id="w", token=token)
    again = ledger.claim(task_id, worker_id="w", token=token)
    assert first is not None
    # The second time it is not known whether the first has written anything.
    assert again == dataclasses.replace(first, target_is_empty=False)
    assert ledger.record(first, OUTCOME)
    assert ledger.record(first, OUTCOME)
    assert scalar(database, "SELECT count(*) FROM sync_results") == 1
    assert scalar(database, "SELECT duplicates_suppressed FROM sync_runs") == 0


def test_a_worker_that_was_paused_past_its_lease_cannot_record(database: Database) -> None:
    ledger = Ledger(database)
    _, (task_id,) = plan_run(database, ["a"], chunk_size=1)
    add_worker(database, "paused")
    add_worker(database, "other")
    late = claimed(ledger, task_id, "paused")
    end_lease(database, "paused")
    assert not ledger.record(late, OUTCOME)  # even before anybody has noticed

    assert bury_dead_workers(database) == ["paused"]
    attempt = claimed(ledger, task_id, "other")
    assert not ledger.record(late, OUTCOME)
    assert not ledger.fail(late, "too late")
    assert not ledger.retry(late, "too late")
    assert not ledger.release(late)
    assert ledger.record(attempt, OUTCOME)
    assert not ledger.record(late, OUTCOME)
    assert scalar(database, "SELECT worker_id FROM sync_results") == "other"
    assert scalar(database, "SELECT duplicates_suppressed FROM sync_runs") == 3


def test_a_worker_without_a_lease_cannot_claim(database: Database) -> None:
    _, (task_id,) = plan_run(database, ["a"], chunk_size=1)
    assert Ledger(database).claim(task_id, worker_id="nobody") is None


def test_nobody_works_on_a_run_that_has_ended(database: Database) -> None:
    run_id, (task_id,) = plan_run(database, ["a"], chunk_size=1)
    add_worker(database, "w")
    Runs(database.transaction).finish(run_id, status="failed", error="Superseded.")
    assert Ledger(database).claim(task_id, worker_id="w") is None


def kept_manifests(database: Database) -> set[tuple[object, ...]]:
    with database.connection() as connection:
        rows = connection.execute("SELECT run_id, chunk_start_offset FROM sync_manifests")
        return {*rows.fetchall()}


def test_manifests_that_nobody_needs_again_go(database: Database) -> None:
    runs = Runs(database.transaction)
    first, _ = plan_run(database, ["a"], chunk_size=1)
    running, _ = plan_run(database, ["a"], chunk_size=1)
    third, _ = plan_run(database, ["a"], chunk_size=1)
    runs.finish(first, status="failed")
    assert kept_manifests(database) == {(first, 0), (running, 0), (third, 0)}
    assert runs.reopen(first)  # a run that failed can be tried again
    runs.finish(first, status="failed")
    runs.finish(third, status="completed")
    # Neither what has ended well nor what came before it; the other one has not ended.
    assert kept_manifests(database) == {(running, 0)}
    assert not runs.reopen(first)


def test_a_verification_leaves_what_it_has_found(database: Database) -> None:
    runs, ledger = Runs(database.transaction), Ledger(database)
    add_worker(database, "w")
    run_id, (alike, differing, failed) = plan_run(
        database, ["a", "b", "c"], chunk_size=1, kind="verify"
    )
    assert ledger.record(claimed(ledger, alike), OUTCOME)
    found = dataclasses.replace(OUTCOME, unproven=[(0, 7)])
    assert ledger.record(claimed(ledger, differing), found)
    assert ledger.fail(claimed(ledger, failed), "unreadable")
    runs.finish(run_id, status="failed")
    assert kept_manifests(database) == {(run_id, 1), (run_id, 2)}
    later, _ = plan_run(database, ["a"], chunk_size=1)
    runs.finish(later, status="completed")
    assert kept_manifests(database) == set()
    assert scalar(database, "SELECT count(*) FROM sync_unproven") == 0


def test_three_retries_and_then_it_is_the_last_attempt(database: Database) -> None:
    ledger = Ledger(database)
    _, (task_id,) = plan_run(database, ["a"], chunk_size=1)
    add_worker(database, "w")
    for count in range(3):
        attempt = claimed(ledger, task_id)
        assert (attempt.retry_count, attempt.is_last) == (count, False)
        assert ledger.retry(attempt, "the store is away \x00")
    last = claimed(ledger, task_id)
    assert last.is_last
    assert ledger.fail(last, "still away", [RecordRefusal(id="a\x00", reason="no")])
    row = task(database, task_id)
    assert (row["task_status"], row["retry_count"], row["error"]) == ("failed", 3, "still away")
    assert row["refused"] == [["a\x00", "no"]]


def test_a_task_that_kills_its_worker_three_times_in_a_row_is_set_aside(database: Database) -> None:
    ledger = Ledger(database)
    run_id, (task_id,) = plan_run(database, ["a"], chunk_size=1)
    for name in ("one", "two", "three"):
        add_worker(database, name)
        claimed(ledger, task_id, name)
        end_lease(database, name)
        bury_dead_workers(database)
    assert task(database, task_id)["task_status"] == "failed"
    assert "Three workers" in str(task(database, task_id)["error"])

    assert retry_failed(database.transaction, run_id) == 1
    add_worker(database, "four")
    assert ledger.record(claimed(ledger, task_id, "four"), OUTCOME)


def test_tasks_that_no_message_carries_any_more_are_sent_again(database: Database) -> None:
    ledger = Ledger(database)
    run_id, tasks = plan_run(database, ["a", "b", "c"], chunk_size=1)
    add_worker(database, "w")
    ledger.record(claimed(ledger, tasks[0]), OUTCOME)
    orphan = claimed(ledger, tasks[1])
    assert resend_lost(database.transaction, run_id) == 0

    with database.connection() as connection:
        connection.execute("DELETE FROM dramatiq.queue")
    assert resend_lost(database.transaction, run_id) == 2
    assert resend_lost(database.transaction, run_id) == 0
    assert scalar(database, "SELECT count(*) FROM dramatiq.queue WHERE state = 'queued'") == 2
    assert not ledger.record(orphan, OUTCOME)


@pytest.mark.parametrize(
    ("damage", "gaps", "duplicates"),
    [
        ("SELECT 1", 0, 0),
        ("DELETE FROM sync_results WHERE task_id = (SELECT min(id) FROM sync_tasks)", 1, 0),
        ("DELETE FROM sync_tasks WHERE id = (SELECT max(id) FROM sync_tasks)", 2, 0),
        # The chunk after it no longer begins where this one ended, and the manifest has no task.
        ("DELETE FROM sync_tasks WHERE chunk_start_offset = 4", 2, 0),
        (
            "UPDATE sync_manifests SET ids = ARRAY['id0', 'id1']::bytea[]"
            " WHERE chunk_start_offset = 4",
            0,
            2,
        ),
        (
            "UPDATE sync_tasks SET chunk_end_offset = 5 WHERE chunk_start_offset = 2",
            1,
            1,
        ),
    ],
)
def test_the_ledger_proof_sees_what_is_wrong(
    database: Database, damage: str, gaps: int, duplicates: int
) -> None:
    ledger = Ledger(database)
    run_id, tasks = plan_run(database, [f"id{n}" for n in range(10)], chunk_size=2)
    add_worker(database, "w")
    for task_id in tasks:
        assert ledger.record(claimed(ledger, task_id), OUTCOME)
    with database.connection() as connection:
        connection.execute(damage.encode())
    proof = prove_ledger(database, run_id)
    assert (proof.gaps, proof.duplicates) == (gaps, duplicates)


def test_states_that_cannot_be_are_refused_by_the_database(database: Database) -> None:
    plan_run(database, ["a"], chunk_size=1)
    for change in (
        "task_status = 'processing'",
        "task_status = 'completed'",
        "task_status = 'done'",
        "attempt_token = gen_random_uuid()",
        "chunk_end_offset = 0",
    ):
        with (
            pytest.raises(psycopg.errors.CheckViolation),
            database.connection() as connection,
        ):
            connection.execute(f"UPDATE sync_tasks SET {change}".encode())  # noqa: S608


def test_ledger_model(database: Database) -> None:
    """Whatever workers, queue and coordinator do, in any order: results and states agree."""

    class LedgerModel(RuleBasedStateMachine):
        TASKS = 3

        def __init__(self) -> None:
            super().__init__()
            self.ledger = Ledger(database)
            self.run_id, self.tasks = plan_run(database, list("abc"), chunk_size=1)
            self.attempts: list[Attempt] = []
            self.workers = 0
            self.alive: list[str] = []
            self.hire()

        @rule()
        def hire(self) -> None:
            self.workers += 1
            name = f"{self.run_id}-{self.workers}"
            add_worker(database, name)
            self.alive.append(name)

        @rule(data=st.data())
        def pause_past_the_lease(self, data: st.DataObject) -> None:
            if self.alive:
                name = data.draw(st.sampled_from(self.alive))
                self.alive.remove(name)
                end_lease(database, name)

        @rule()
        def bury(self) -> None:
            bury_dead_workers(database)

        @rule(data=st.data(), index=st.integers(0, TASKS - 1))
        def deliver(self, data: st.DataObject, index: int) -> None:
            if self.alive:
                worker_id = data.draw(st.sampled_from(self.alive))
                attempt = self.ledger.claim(self.tasks[index], worker_id=worker_id)
                if attempt is not None:
                    self.attempts.append(attempt)

        @rule(data=st.data(), how=st.sampled_from(["record", "retry", "fail", "release"]))
        def finish(self, data: st.DataObject, how: str) -> None:
            if not self.attempts:
                return
            attempt = data.draw(st.sampled_from(self.attempts))
            before = self.results()
            if how == "record":
                took = self.ledger.record(attempt, OUTCOME)
                assert took == (self.token_of(attempt.task_id) == attempt.token)
            elif how == "retry":
                self.ledger.retry(attempt, "again")
            elif how == "fail":
                self.ledger.fail(attempt, "no")
            else:
                self.ledger.release(attempt)
            assert before <= self.results()  # a result never goes away

        @rule()
        def retry_failed_tasks(self) -> None:
            retry_failed(database.transaction, self.run_id)

        @rule()
        def lose_the_queue_and_resend(self) -> None:
            with database.connection() as connection:
                connection.execute("DELETE FROM dramatiq.queue")
            resend_lost(database.transaction, self.run_id)

        def results(self) -> set[tuple[int, UUID]]:
            with database.connection() as connection:
                rows = connection.execute(
                    "SELECT task_id, attempt_token FROM sync_results WHERE run_id = %s",
                    [self.run_id],
                ).fetchall()
            return set(rows)

        def token_of(self, task_id: int) -> UUID | None:
            return dict(self.results()).get(task_id)

        @invariant()
        def completed_tasks_are_those_with_a_result(self) -> None:
            with database.connection() as connection:
                rows = connection.execute(
                    "SELECT t.id, t.task_status, count(r.task_id) FROM sync_tasks t"
                    " LEFT JOIN sync_results r ON r.task_id = t.id"
                    " WHERE t.run_id = %s GROUP BY t.id",
                    [self.run_id],
                ).fetchall()
            for _, status, results in rows:
                assert results == (status == "completed")

    run_state_machine_as_test(
        LedgerModel,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
