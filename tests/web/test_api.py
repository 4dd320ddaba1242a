"""The API: what it shows, and what it can be asked to do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
from psycopg.types.json import Json

from coordinator import pair_state
from coordinator.lease import held_lease
from coordinator.runs import Runs
from coordinator.schedule import LEASE
from tasks.database import Database
from tasks.ledger import Ledger
from tasks.stores.base import RecordRefusal
from tests.eventually import eventually
from tests.integration.ledger_rows import add_worker, plan_run
from tests.web.conftest import SOURCE, TARGET, TOKEN, Serve, change, pair
from tests.web.test_metrics import do, end, execute

API = "/api/v1"


@pytest.fixture
def run(database: Database) -> tuple[UUID, list[int]]:
    """A run of four chunks: one done, one under way, one failed, one waiting; and its worker."""
    add_worker(database, "w")
    run_id, tasks = plan_run(database, list("abcdefgh"), chunk_size=2)
    execute(database, "UPDATE sync_runs SET pair = 'docs'")
    do(database, tasks[0], added=2)
    assert Ledger(database).claim(tasks[1], worker_id="w") is not None
    attempt = Ledger(database).claim(tasks[2], worker_id="w")
    assert attempt is not None
    refused = [RecordRefusal(id="e\x00", reason="too <b>long</b>")]
    Ledger(database).fail(attempt, "1 record could not be copied", refused)
    return run_id, tasks


def test_a_run_is_shown_with_its_chunks(web: httpx.Client, run: tuple[UUID, list[int]]) -> None:
    run_id, _ = run
    shown = web.get(f"{API}/runs/{run_id}").json()
    assert shown["grid"]["segments"] == [{"collection": "c", "chunks": 4, "cells": "crfp"}]
    assert shown["grid"]["per_cell"] == 1
    assert shown["shares"] == [{"worker_id": "w", "chunks": 1}]
    (part,) = shown["run"]["parts"]
    assert part["chunks"] == {
        "planned": 4, "pending": 1, "processing": 1, "completed": 1, "failed": 1
    }  # fmt: skip
    assert (part["records_done"], part["records"]) == (2, 8)
    assert part["records_per_second"] > 0
    assert part["seconds_left"] > 0


def test_times_are_in_utc(serve: Serve, database: Database, run: object) -> None:
    execute(database, "ALTER ROLE CURRENT_USER SET timezone = 'Asia/Tokyo'")
    try:
        shown = serve(pair()).get(f"{API}/runs").json()[0]
    finally:
        execute(database, "ALTER ROLE CURRENT_USER RESET timezone")
    assert shown["begun"].endswith("Z")
    assert datetime.now(UTC) - datetime.fromisoformat(shown["begun"]) < timedelta(minutes=5)


def test_ten_thousand_chunks_are_grouped(web: httpx.Client, database: Database) -> None:
    run_id, _ = plan_run(database, [f"{n}" for n in range(10_000)], chunk_size=1)
    execute(
        database,
        "UPDATE sync_tasks SET task_status = 'completed', completed_at = now(),"
        " started_at = now(), worker_id = 'w' WHERE chunk_start_offset < 5003",
    )
    grid = web.get(f"{API}/runs/{run_id}").json()["grid"]
    (segment,) = grid["segments"]
    assert grid["per_cell"] == 7
    assert len(segment["cells"]) == 1429
    assert segment["cells"].startswith("c" * 714 + "7" + "p")
    assert len(web.get(f"{API}/overview").content) < 20_000


def test_a_run_shows_the_part_that_is_under_way(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    run_id, _ = run
    proof, _ = plan_run(database, list("ab"), chunk_size=1, kind="verify", parent=run_id)
    shown = web.get(f"{API}/overview").json()["work"][0]
    assert shown["part"] == str(proof)
    assert [part["kind"] for part in shown["run"]["parts"]] == ["sync", "verify"]
    assert web.get(f"{API}/runs/{proof}").json()["run"]["run_id"] == str(run_id)


def test_failures_are_shown_with_their_reasons(
    web: httpx.Client, run: tuple[UUID, list[int]]
) -> None:
    run_id, tasks = run
    (failure,) = web.get(f"{API}/runs/{run_id}/failures").json()
    assert failure["task_id"] == tasks[2]
    assert failure["error"] == "1 record could not be copied"
    assert failure["refused"] == 1
    assert (failure["start"], failure["end"]) == (4, 6)
    (trouble,) = web.get(f"{API}/overview").json()["trouble"]
    assert trouble["failures"] == [failure]


def test_tasks_come_in_pages(web: httpx.Client, run: tuple[UUID, list[int]]) -> None:
    run_id, tasks = run
    first = web.get(f"{API}/runs/{run_id}/tasks", params={"count": 3}).json()
    assert [task["task_id"] for task in first["tasks"]] == tasks[:3]
    query = {"count": 3, "after": first["next_after"]}
    second = web.get(f"{API}/runs/{run_id}/tasks", params=query).json()
    assert [task["task_id"] for task in second["tasks"]] == tasks[3:]
    assert second["next_after"] is None
    failed = web.get(f"{API}/runs/{run_id}/tasks", params={"status": "failed"}).json()
    assert [task["task_id"] for task in failed["tasks"]] == tasks[2:3]


def test_runs_come_in_pages_and_by_pair(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    other, _ = plan_run(database, ["a"], chunk_size=1)
    both = web.get(f"{API}/runs").json()
    assert [one["run_id"] for one in both] == [str(other), str(run[0])]
    older = web.get(f"{API}/runs", params={"before": both[0]["begun"]}).json()
    assert [one["run_id"] for one in older] == [str(run[0])]
    assert [one["run_id"] for one in web.get(f"{API}/runs", params={"pair": "docs"}).json()] == [
        str(run[0])
    ]


@pytest.mark.parametrize("path", ["", "/tasks", "/failures"])
def test_what_is_not_there_is_404(web: httpx.Client, path: str) -> None:
    answer = web.get(f"{API}/runs/{uuid4()}{path}")
    assert answer.status_code == 404
    assert "No run" in answer.json()["error"]


def test_nonsense_is_told_in_a_line(web: httpx.Client) -> None:
    answer = web.get(f"{API}/runs/nonsense")
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("path.run_id: ")


def test_workers_are_shown(web: httpx.Client, database: Database) -> None:
    add_worker(database, "w")
    add_worker(database, "gone")
    execute(database, "UPDATE sync_workers SET lease_expires_at = now() - interval '1 s',"
            " lease_seconds = 0.001 WHERE worker_id = 'gone'")  # fmt: skip
    status = {one["worker_id"]: one["status"] for one in web.get(f"{API}/workers").json()}
    assert status == {"w": "active", "gone": "dead"}


# Pairs ------------------------------------------------------------------------------------------


def state(web: httpx.Client) -> str:
    return str(web.get(f"{API}/pairs/docs").json()["state"])


def test_a_pair_has_a_state(web: httpx.Client, database: Database) -> None:
    assert state(web) == "waiting"
    run_id, _ = plan_run(database, ["a"], chunk_size=1)
    execute(database, "UPDATE sync_runs SET pair = 'docs'")
    assert state(web) == "syncing"
    execute(database, "UPDATE sync_runs SET created_at = now() - interval '2 minutes'")
    assert state(web) == "stalled"
    end(database, run_id)
    assert state(web) == "alike"
    assert web.get(f"{API}/pairs/docs").json()["lag"] >= 120
    pair_state.note_due(database, "docs", datetime.now(UTC) - timedelta(minutes=2))
    assert state(web) == "overdue"
    pair_state.note_error(database, "docs", "the source is away")
    assert state(web) == "failed"
    pair_state.set_paused(database, "docs", paused=True)
    assert state(web) == "paused"


def test_differences_are_trouble_and_a_restless_source_is_not(
    web: httpx.Client, database: Database
) -> None:
    run_id, _ = plan_run(database, ["a"], chunk_size=1)
    execute(database, "UPDATE sync_runs SET pair = 'docs'")
    Runs(database.transaction).finish(run_id, status="completed", verified=False)
    assert state(web) == "caught up"
    assert web.get(f"{API}/overview").json()["trouble"] == []
    proof, _ = plan_run(database, ["a"], chunk_size=1, kind="verify")
    execute(database, "UPDATE sync_runs SET pair = 'docs'")
    Runs(database.transaction).finish(proof, status="completed", verified=False)
    assert state(web) == "failed"
    trouble = eventually(lambda: web.get(f"{API}/overview").json()["trouble"])
    assert [one["run_id"] for one in trouble] == [str(proof)]
    assert change(web, f"{API}/runs/{proof}/retry").status_code == 202


@pytest.mark.parametrize("wanted", ["sync", "verify"])
def test_a_pair_can_be_asked_for_a_run(web: httpx.Client, database: Database, wanted: str) -> None:
    answer = change(web, f"{API}/pairs/docs/{wanted}")
    assert answer.status_code == 202
    assert pair_state.read_state(database, "docs").requested == wanted


def test_a_pair_that_is_paused_is_not_asked(web: httpx.Client, database: Database) -> None:
    assert change(web, f"{API}/pairs/docs/pause").status_code == 200
    answer = change(web, f"{API}/pairs/docs/sync")
    assert answer.status_code == 409
    assert pair_state.read_state(database, "docs").requested is None
    assert change(web, f"{API}/pairs/docs/resume").status_code == 200
    assert not pair_state.read_state(database, "docs").paused


@pytest.mark.parametrize("what", ["sync", "verify", "pause", "resume"])
def test_a_pair_that_is_not_there_cannot_be_asked(web: httpx.Client, what: str) -> None:
    assert change(web, f"{API}/pairs/nobody/{what}").status_code == 404


# Runs -------------------------------------------------------------------------------------------


def test_a_run_can_be_held_and_ended(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    run_id, tasks = run
    assert change(web, f"{API}/runs/{run_id}/pause").status_code == 200
    assert Ledger(database).is_held(tasks[3])
    assert web.get(f"{API}/runs/{run_id}").json()["run"]["paused"] is True
    assert change(web, f"{API}/runs/{run_id}/resume").status_code == 200
    assert not Ledger(database).is_held(tasks[3])
    assert change(web, f"{API}/runs/{run_id}/cancel").status_code == 200
    assert web.get(f"{API}/runs/{run_id}").json()["run"]["status"] == "cancelled"
    answer = change(web, f"{API}/runs/{run_id}/pause")
    assert answer.status_code == 409
    assert "cancelled" in answer.json()["error"]


def test_a_failed_run_is_tried_again_by_the_leader(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    run_id, _ = run
    assert change(web, f"{API}/runs/{run_id}/retry").status_code == 409  # it goes on
    end(database, run_id, verified=False)
    pair_state.set_paused(database, "docs", paused=True)
    assert change(web, f"{API}/runs/{run_id}/retry").status_code == 409  # nobody would do it
    pair_state.set_paused(database, "docs", paused=False)
    assert change(web, f"{API}/runs/{run_id}/retry").status_code == 202
    assert pair_state.read_state(database, "docs").requested == "sync"


def test_a_run_of_a_pairs_stores_counts_as_the_pairs(web: httpx.Client, database: Database) -> None:
    run_id, _ = plan_run(database, ["a"], chunk_size=1)  # by hand, between the same stores
    end(database, run_id, verified=False)
    assert change(web, f"{API}/runs/{run_id}/retry").status_code == 202


def test_a_run_of_no_pair_cannot_be_tried_again_from_here(
    web: httpx.Client, database: Database
) -> None:
    run_id, _ = plan_run(database, ["a"], chunk_size=1)
    execute(database, "UPDATE sync_runs SET target_url = 'http://elsewhere:8000'")
    end(database, run_id, verified=False)
    answer = change(web, f"{API}/runs/{run_id}/retry")
    assert answer.status_code == 409
    assert f"chroma-sync retry {run_id}" in answer.json()["error"]


def test_what_was_verified_since_is_not_tried_again(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    end(database, run[0], verified=False)
    later, _ = plan_run(database, ["a"], chunk_size=1)
    end(database, later)
    for run_id in (run[0], later):
        answer = change(web, f"{API}/runs/{run_id}/retry")
        assert answer.status_code == 409
        assert "nothing to retry" in answer.json()["error"]
    assert pair_state.read_state(database, "docs").requested is None


# Stores -----------------------------------------------------------------------------------------


def put(web: httpx.Client, **body: object) -> httpx.Response:
    return web.put(f"{API}/stores/limits", json=body, headers={"authorization": f"Bearer {TOKEN}"})


def test_the_limits_of_a_store_can_be_set(web: httpx.Client) -> None:
    servers = {one["server"]: one for one in web.get(f"{API}/stores").json()}
    assert set(servers) == {SOURCE, TARGET}
    assert servers[TARGET]["roles"] == [{"pair": "docs", "role": "target"}]
    answer = put(web, server=TARGET, records_per_second=100)
    assert answer.json()["records_per_second"] == 100
    servers = {one["server"]: one for one in web.get(f"{API}/stores").json()}
    assert servers[TARGET]["records_per_second"] == 100
    assert servers[TARGET]["requests_in_flight"] is None
    assert servers[SOURCE]["records_per_second"] is None
    assert put(web, server=TARGET).json()["records_per_second"] is None


def test_limits_that_cannot_be_are_refused(web: httpx.Client) -> None:
    assert put(web, server="http://nobody:8000", records_per_second=1).status_code == 404
    assert put(web, server=TARGET, records_per_second=0).status_code == 422
    assert put(web, server="nonsense://x", records_per_second=1).status_code == 422
    assert web.put(f"{API}/stores/limits", json={"server": TARGET}).status_code == 401


# The past, and the whole ------------------------------------------------------------------------


def test_history_is_what_the_reports_say(web: httpx.Client, database: Database) -> None:
    for number, verified in enumerate((True, False)):
        run_id, _ = plan_run(database, ["a"], chunk_size=1)
        report = {
            "collections": [
                {"added": 3, "updated": 2, "unchanged": 5, "missing": number},
                {"deleted": 1, "added": None, "unchanged": 5, "differing": number},
            ],
            "findings": [{"id": "\x00"}],
        }
        execute(
            database,
            "UPDATE sync_runs SET report = %s, status = 'completed', verified = %s,"
            " finished_at = now() WHERE id = %s",
            Json(report, dumps=orjson.dumps),
            verified,
            run_id,
        )
    first, second = web.get(f"{API}/history").json()
    assert (first["written"], first["unchanged"], first["unlike"]) == (6, 10, 0)
    assert (second["unlike"], second["verified"]) == (2, False)


def test_the_overview_holds_all_of_it(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    with held_lease(database, LEASE, holder="us", seconds=60, patience=0):
        shown = web.get(f"{API}/overview").json()
    assert shown["leader"] == {"holder": "us", "term": 1}
    assert [one["name"] for one in shown["pairs"]] == ["docs"]
    assert [one["run"]["run_id"] for one in shown["work"]] == [str(run[0])]
    assert [one["worker_id"] for one in shown["workers"]] == ["w"]
    assert shown["may_change"] is True


def test_the_last_run_is_shown_when_none_goes_on(
    web: httpx.Client, database: Database, run: tuple[UUID, list[int]]
) -> None:
    end(database, run[0], verified=False)
    shown = web.get(f"{API}/overview").json()
    assert [one["run"]["status"] for one in shown["work"]] == ["failed"]
    assert [one["run_id"] for one in shown["trouble"]] == [str(run[0])]


def test_an_empty_ledger_has_a_page_too(serve: Serve) -> None:
    web = serve()
    shown = web.get(f"{API}/overview").json()
    assert (shown["pairs"], shown["work"], shown["workers"]) == ([], [], [])
    assert web.get(f"{API}/history").json() == []


def test_every_route_is_in_the_openapi_document(web: httpx.Client) -> None:
    paths = web.get(f"{API}/openapi.json").json()["paths"]
    documented = {(method, path) for path, methods in paths.items() for method in methods}
    assert {
        ("get", f"{API}/runs"),
        ("get", f"{API}/runs/{{run_id}}"),
        ("get", f"{API}/runs/{{run_id}}/tasks"),
        ("get", f"{API}/runs/{{run_id}}/failures"),
        *(("post", f"{API}/runs/{{run_id}}/{verb}") for verb in _RUN_VERBS),
        *(("post", f"{API}/pairs/{{name}}/{verb}") for verb in _PAIR_VERBS),
        ("get", f"{API}/workers"),
        ("get", f"{API}/stores"),
        ("put", f"{API}/stores/limits"),
        ("get", f"{API}/overview"),
        ("get", f"{API}/history"),
    } <= documented


_RUN_VERBS = ("pause", "resume", "cancel", "retry")
_PAIR_VERBS = ("sync", "verify", "pause", "resume")


# Ready ------------------------------------------------------------------------------------------


def test_it_is_ready_when_all_is_there(
    serve: Serve, database: Database, servers: tuple[str, str]
) -> None:
    web = serve(pair(source=servers[0], target=servers[1]))
    answer = web.get("/readyz")
    assert answer.status_code == 503
    assert [one["name"] for one in answer.json()["checks"] if not one["ok"]] == ["leader"]
    execute(database, "INSERT INTO sync_migrations (version, name, checksum) VALUES (9999, '', '')")
    web = serve(pair(source=servers[0], target="http://127.0.0.1:9"))
    wrong = [one for one in web.get("/readyz").json()["checks"] if not one["ok"]]
    assert [one["name"] for one in wrong] == ["schema", "leader", "store"]
    assert wrong[2]["subject"] == "http://127.0.0.1:9"
    execute(database, "DELETE FROM sync_migrations WHERE version = 9999")
    with held_lease(database, LEASE, holder="us", seconds=60, patience=0):
        web = serve(pair(source=servers[0], target=servers[1]))
        answer = web.get("/readyz")
        assert (answer.status_code, answer.json()["ready"]) == (200, True)
