"""What Prometheus is told: right, never falling, and also when something is away."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator import pair_state
from coordinator.enqueue import resend_lost, retry_failed
from coordinator.lease import held_lease
from coordinator.runs import Runs
from coordinator.schedule import LEASE
from coordinator.web import metrics as told
from tasks.database import Database
from tasks.ledger import Ledger
from tasks.workers import bury_dead_workers, new_worker_id
from tests.integration.ledger_rows import OUTCOME, add_worker, end_lease, plan_run
from tests.web.conftest import Serve, pair

Samples = dict[str, float]


def scrape(web: httpx.Client) -> Samples:
    """Every sample that is ours, as `name{label="value"}`."""
    answer = web.get("/metrics")
    assert answer.status_code == 200
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return {
        name.removeprefix("chroma_sync_"): value
        for name, value in found.items()
        if name.startswith("chroma_sync_")
    }


def counters(samples: Samples) -> Samples:
    return {
        name: value
        for name, value in samples.items()
        if "_total" in name or "_bucket" in name or "_count" in name or "_sum" in name
    }


def assert_none_fell(before: Samples, after: Samples) -> None:
    fallen = {
        name: (value, after.get(name))
        for name, value in counters(before).items()
        if after.get(name, -1) < value
    }
    assert not fallen


def do(database: Database, task: int, **counted: Any) -> None:
    """A worker completes a task."""
    ledger = Ledger(database)
    attempt = ledger.claim(task, worker_id="w")
    assert attempt is not None
    assert ledger.record(attempt, replace(OUTCOME, **{"added": 0, "seconds": 0.2, **counted}))


def fail(database: Database, task: int) -> None:
    ledger = Ledger(database)
    attempt = ledger.claim(task, worker_id="w")
    assert attempt is not None
    assert ledger.fail(attempt, "it does not want to")


def end(database: Database, run_id: UUID, *, verified: bool = True) -> None:
    Runs(database.transaction).finish(
        run_id, status="completed" if verified else "failed", verified=verified
    )


def execute(database: Database, query: str, *values: object) -> None:
    with database.connection() as connection:
        connection.execute(query.encode(), values or None)


@pytest.fixture
def run(database: Database) -> tuple[UUID, list[int]]:
    """A run of three chunks, and a worker."""
    add_worker(database, "w")
    return plan_run(database, list("abcdef"), chunk_size=2)


def test_a_run_is_counted_while_it_goes_on_once_it_has_ended_and_when_it_is_gone(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    run_id, tasks = run
    planned = scrape(web)
    assert planned['chunks_planned_total{kind="sync"}'] == 3
    assert planned['chunks_completed_total{kind="sync"}'] == 0
    do(database, tasks[0], added=2, read_bytes=30, written_bytes=10, seconds=0.2)
    do(database, tasks[1], updated=1, unchanged=1, seconds=7)
    going_on = scrape(web)
    assert going_on['chunks_completed_total{kind="sync"}'] == 2
    assert going_on['records_total{action="added"}'] == 2
    assert going_on['records_total{action="updated"}'] == 1
    assert going_on['bytes_total{direction="read"}'] == 30
    assert going_on['bytes_total{direction="written"}'] == 10
    assert going_on['chunk_duration_seconds_bucket{kind="sync",le="0.1"}'] == 0
    assert going_on['chunk_duration_seconds_bucket{kind="sync",le="0.25"}'] == 1
    assert going_on['chunk_duration_seconds_bucket{kind="sync",le="5.0"}'] == 1
    assert going_on['chunk_duration_seconds_bucket{kind="sync",le="10.0"}'] == 2
    assert going_on['chunk_duration_seconds_bucket{kind="sync",le="+Inf"}'] == 2
    assert going_on['chunk_duration_seconds_sum{kind="sync"}'] == pytest.approx(7.2)
    assert going_on['chunk_queue_wait_seconds_count{kind="sync"}'] == 2
    do(database, tasks[2], deleted=2)
    end(database, run_id)
    ended = scrape(web)
    assert_none_fell(going_on, ended)
    assert ended['chunks_completed_total{kind="sync"}'] == 3
    assert counters(scrape(web)) == counters(ended)
    execute(database, "DELETE FROM sync_runs")
    gone = scrape(web)
    assert {name: value for name, value in gone.items() if name in counters(ended)} == counters(
        ended
    )


def test_a_run_that_is_retried_is_not_counted_twice(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    run_id, tasks = run
    do(database, tasks[0], added=2)
    fail(database, tasks[1])
    do(database, tasks[2], added=2)
    end(database, run_id, verified=False)
    first = scrape(web)
    assert first['chunks_failed_total{kind="sync"}'] == 1
    assert Runs(database.transaction).reopen(run_id)
    retry_failed(database.transaction, run_id)
    opened = scrape(web)
    assert_none_fell(first, opened)
    fail(database, tasks[1])
    end(database, run_id, verified=False)  # and again, before anybody looks
    Runs(database.transaction).reopen(run_id)
    retry_failed(database.transaction, run_id)
    do(database, tasks[1], added=2)
    end(database, run_id)
    last = scrape(web)
    assert_none_fell(opened, last)
    assert last['chunks_planned_total{kind="sync"}'] == 3
    assert last['chunks_completed_total{kind="sync"}'] == 3
    assert last['chunks_failed_total{kind="sync"}'] == 2
    assert last['chunks_retried_total{kind="sync"}'] == 2
    assert last['records_total{action="added"}'] == 6


def test_a_retry_and_a_rescue_are_told_apart(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    run_id, tasks = run
    ledger = Ledger(database)
    attempt = ledger.claim(tasks[0], worker_id="w")
    assert attempt is not None
    ledger.retry(attempt, "the store is away")
    assert ledger.claim(tasks[1], worker_id="w") is not None
    end_lease(database, "w")
    assert bury_dead_workers(database) == ["w"]
    execute(database, "DELETE FROM dramatiq.queue WHERE message_id = "
            "(SELECT message_id FROM sync_tasks WHERE id = %s)", tasks[2])  # fmt: skip
    assert resend_lost(database.transaction, run_id) == 1
    seen = scrape(web)
    assert seen['chunks_retried_total{kind="sync"}'] == 1
    assert seen['chunks_rescued_total{kind="sync"}'] == 2
    assert seen['workers{status="dead"}'] == 1
    assert seen['worker_last_heartbeat_seconds{worker="w"}'] >= 0
    assert 'worker_memory_bytes{worker="w"}' not in seen


def test_a_late_result_is_counted_after_its_run_was(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    run_id, tasks = run
    ledger = Ledger(database)
    late = ledger.claim(tasks[0], worker_id="w")
    assert late is not None
    end_lease(database, "w")
    bury_dead_workers(database)
    add_worker(database, "v")
    attempt = ledger.claim(tasks[0], worker_id="v")
    assert attempt is not None
    ledger.record(attempt, OUTCOME)
    end(database, run_id)
    before = scrape(web)
    assert before["results_suppressed_total"] == 0
    for count in (1, 2):
        assert not ledger.record(late, OUTCOME)
        after = scrape(web)
        assert after["results_suppressed_total"] == count
    assert_none_fell(before, after)


def test_a_chunk_that_outlives_its_run_is_counted(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    _, tasks = run
    ledger = Ledger(database)
    attempt = ledger.claim(tasks[0], worker_id="w")
    assert attempt is not None
    execute(database, "UPDATE sync_runs SET status = 'cancelled', finished_at = now()")
    assert scrape(web)['chunks_completed_total{kind="sync"}'] == 0
    assert ledger.record(attempt, OUTCOME)
    assert scrape(web)['chunks_completed_total{kind="sync"}'] == 1


def test_coordinators_that_are_scraped_at_once_count_once(serve: Serve, database: Database) -> None:
    add_worker(database, "w")
    webs = [serve(pair()) for _ in range(3)]
    for _ in range(4):
        run_id, tasks = plan_run(database, list("abcd"), chunk_size=1)
        for task in tasks:
            do(database, task, added=1)
        end(database, run_id)
    with ThreadPoolExecutor() as pool:
        seen = list(pool.map(scrape, webs * 5))
    assert {one['chunks_completed_total{kind="sync"}'] for one in seen} == {16}
    with database.connection() as connection:
        left = connection.execute(
            "SELECT count(*) FROM sync_runs WHERE counted_at IS DISTINCT FROM finished_at"
        ).fetchone()
    assert left == (0,)


def test_a_pair_that_was_never_alike_lags_for_ever(web: httpx.Client) -> None:
    seen = scrape(web)
    assert seen['pair_lag_seconds{pair="docs"}'] == math.inf
    assert seen['pair_stalled_seconds{pair="docs"}'] == 0


def test_the_lag_grows_while_nothing_moves(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    run_id, tasks = run
    for task in tasks:
        do(database, task)
    execute(database, "UPDATE sync_runs SET pair = 'docs', created_at = now() - interval '100 s'")
    end(database, run_id)
    first = scrape(web)
    assert first['pair_lag_seconds{pair="docs"}'] >= 100
    assert first['pair_last_run_verified{pair="docs"}'] == 1
    assert first['pair_stalled_seconds{pair="docs"}'] == 0
    # The next run hangs: nothing is recorded any more.
    plan_run(database, list("ab"), chunk_size=1)
    execute(
        database,
        "UPDATE sync_runs SET pair = 'docs', created_at = now() - interval '50 s',"
        " planned_at = now() - interval '40 s' WHERE finished_at IS NULL",
    )
    second = scrape(web)
    assert second['pair_lag_seconds{pair="docs"}'] > first['pair_lag_seconds{pair="docs"}']
    assert 40 <= second['pair_stalled_seconds{pair="docs"}'] < 50


def test_what_the_last_proof_found_is_told(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    run_id, tasks = run
    for task in tasks[:2]:
        do(database, task)
    fail(database, tasks[2])  # two records
    proof, (task,) = plan_run(database, list("ab"), chunk_size=2, kind="verify", parent=run_id)
    do(database, task, missing=1, differing=3)
    execute(database, "UPDATE sync_runs SET pair = 'docs' WHERE id = %s", run_id)
    end(database, proof, verified=False)
    end(database, run_id, verified=False)
    seen = scrape(web)
    assert seen['verification_mismatches{pair="docs"}'] == 6
    assert seen['pair_last_run_verified{pair="docs"}'] == 0
    pair_state.set_paused(database, "docs", paused=True)
    assert scrape(web)['pair_paused{pair="docs"}'] == 1


def test_who_leads_is_told_only_while_it_does(web: httpx.Client, database: Database) -> None:
    us = new_worker_id()
    with held_lease(database, LEASE, holder=us, seconds=60, patience=0):
        seen = scrape(web)
        assert seen[f'leader{{holder="{us}"}}'] == 1
        assert seen["is_leader"] == 1
    with held_lease(database, LEASE, holder="somebody-1-abc", seconds=60, patience=0):
        seen = scrape(web)
        assert seen['leader{holder="somebody-1-abc"}'] == 1
        assert seen["is_leader"] == 0
        assert seen["leader_term"] == 2
    seen = scrape(web)
    assert not [name for name in seen if name.startswith("leader{")]
    assert seen["leader_term"] == 2


def test_the_queue_is_told_by_state(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    execute(
        database,
        "UPDATE dramatiq.queue SET due_at = CASE seq % 3 WHEN 0 THEN 'infinity'"
        " WHEN 1 THEN now() - interval '70 s' ELSE now() - interval '5 s' END",
    )
    seen = scrape(web)
    assert seen['queue_messages{queue="sync",state="queued"}'] == 2
    assert seen['queue_messages{queue="sync",state="delayed"}'] == 1
    assert seen['queue_messages{queue="sync",state="done"}'] == 0
    assert 70 <= seen['queue_oldest_seconds{queue="sync"}'] < 100
    assert seen['queue_oldest_seconds{queue="sync-verify"}'] == 0
    assert seen['tasks{kind="sync",status="pending"}'] == 3


def test_everything_that_is_promised_is_there(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    with held_lease(database, LEASE, holder="us", seconds=60, patience=0):
        names = {name.partition("{")[0] for name in scrape(web)}
    promised = {
        *("queue_messages", "queue_oldest_seconds", "tasks"),
        *(f"chunks_{event}_total" for event in told.CHUNK_EVENTS),
        *("results_suppressed_total", "records_total", "bytes_total"),
        *("chunk_duration_seconds_bucket", "chunk_queue_wait_seconds_bucket"),
        *("workers", "worker_last_heartbeat_seconds", "worker_memory_bytes"),
        *("worker_cpu_percent", "pair_lag_seconds", "pair_stalled_seconds", "pair_paused"),
        *("pair_last_run_verified", "verification_mismatches"),
        *("leader", "leader_term", "is_leader", "scrape_errors_total"),
        *("postgres_dead_tuples", "postgres_connections", "postgres_notification_queue_ratio"),
    }
    assert promised <= names


def test_without_postgres_the_process_is_still_told(
    web: httpx.Client, database: Database, postgres_url: str
) -> None:
    assert scrape(web)["scrape_errors_total"] == 0
    name = psycopg.conninfo.conninfo_to_dict(database.url)["dbname"]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
    seen = scrape(web)
    assert seen["scrape_errors_total"] >= 1
    assert 'pair_lag_seconds{pair="docs"}' not in seen
    assert "process_resident_memory_bytes" in web.get("/metrics").text
    assert web.get("/healthz").status_code == 200
    assert web.get("/readyz").status_code == 503


def test_no_scrape_takes_long(web: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = told.QUERIES | {"tasks": "SELECT 'sync', 'pending', 1 FROM pg_sleep(60)"}
    monkeypatch.setattr(told, "QUERIES", queries)
    monkeypatch.setattr(told, "BUDGET", 1.0)
    seen = scrape(web)
    assert seen["scrape_errors_total"] >= 1
    assert 'pair_lag_seconds{pair="docs"}' in seen


def test_a_part_that_takes_too_long_costs_only_itself(
    web: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_out = "DO $$ BEGIN RAISE SQLSTATE '57014'; END $$"
    monkeypatch.setattr(told, "QUERIES", told.QUERIES | {"tasks": timed_out})
    seen = scrape(web)
    assert seen["scrape_errors_total"] == 1
    assert 'tasks{kind="sync",status="pending"}' not in seen
    assert 'pair_lag_seconds{pair="docs"}' in seen
    assert 'chunks_planned_total{kind="sync"}' in seen
