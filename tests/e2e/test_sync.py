"""The main job, run as a user does, and checked with the chromadb client."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.e2e.conftest import Ask, Program, Side, embedding_of, everything, fill, wait_for_a_chunk
from tests.eventually import eventually

Sides = tuple[Side, Side]


def vectors(*rows: list[float]) -> Any:
    return [np.asarray(row, dtype=np.float32) for row in rows]


def wait_until_workers_are_gone(ask: Ask) -> None:
    pids = [int(str(pid)) for (pid,) in ask("SELECT pid FROM sync_workers")]
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_copy_is_whole_and_a_second_one_writes_nothing(
    program: Program, sides: Sides, ask: Ask
) -> None:
    source, target = sides
    fill(source.client, "docs", 3000)
    fill(source.client, "empty", 0)

    first = program("sync", source.url, target.url, "--json", "--workers", "2")
    assert first.code == 0, first.err
    report = first.document
    assert report["verified"] is True
    assert report["status"] == "completed"
    assert (report["gaps"], report["duplicates"]) == (0, 0)
    assert report["chunks"] == {"planned": 3, "completed": 3, "failed": 0}
    docs = {row["name"]: row for row in report["collections"]}["docs"]
    assert (docs["source_count"], docs["target_count"], docs["added"]) == (3000, 3000, 3000)
    assert everything(source.client, "docs") == everything(target.client, "docs")

    copy = target.client.get_collection("docs", embedding_function=None)
    assert copy.metadata == {"owner": "tests"}
    hnsw = copy.configuration_json["hnsw"]
    assert (hnsw["space"], hnsw["ef_construction"], hnsw["max_neighbors"]) == ("l2", 77, 12)
    assert target.client.get_collection("empty", embedding_function=None).count() == 0

    again = program("sync", source.url, target.url, "--json")
    assert again.code == 0
    docs = {row["name"]: row for row in again.document["collections"]}["docs"]
    assert (docs["added"], docs["updated"], docs["deleted"]) == (0, 0, 0)
    assert docs["unchanged"] == 3000

    # The queries that operators rely on.
    chunks = ask(
        "SELECT collection_name, COUNT(*) AS total_chunks, AVG(completed_at - started_at)"
        " FROM sync_tasks WHERE task_status = 'completed' GROUP BY collection_name"
    )
    # Two syncs of three chunks each; the second wrote nothing, so that nothing was left to verify.
    assert [row[:2] for row in chunks] == [("docs", 9)]
    assert chunks[0][2] is not None
    workers = ask(
        "SELECT worker_id, COUNT(*) AS tasks_completed FROM sync_tasks"
        " WHERE task_status = 'completed' GROUP BY worker_id"
    )
    assert sum(int(str(count)) for _, count in workers) >= 3
    ask(
        "SELECT worker_id, memory_usage_mb, cpu_percent, last_heartbeat FROM sync_workers"
        " WHERE worker_status = 'active' ORDER BY last_heartbeat DESC"
    )


def test_verify_names_what_differs_and_sync_mends_it(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 500)
    assert program("sync", source.url, target.url).code == 0
    damaged = target.client.get_collection("docs", embedding_function=None)
    damaged.delete(ids=[f"id-{row}" for row in range(10)])
    same = embedding_of(target.client, "docs", "id-20")
    damaged.update(ids=["id-20"], documents=["changed"], embeddings=same)
    damaged.update(ids=["id-21"], metadatas=[{"more": 1}])
    damaged.update(ids=["id-22"], embeddings=vectors([0.5] * 16))
    damaged.add(ids=["stranger"], embeddings=vectors([1.0] * 16))

    found = program("verify", source.url, target.url, "--json")
    assert found.code == 1
    report = found.document
    assert report["verified"] is False
    assert "added" not in report["collections"][0]
    row = report["collections"][0]
    assert (row["missing"], row["extra"], row["differing"]) == (10, 1, 3)
    signs = {(one["sign"], one["id"], tuple(one["parts"])) for one in report["findings"]}
    assert signs == {
        *(("-", f"id-{row}", ()) for row in range(10)),
        ("+", "stranger", ()),
        ("*", "id-20", ("document",)),
        ("*", "id-21", ("metadata:more",)),
        ("*", "id-22", ("embedding",)),
    }
    shown = program("verify", source.url, target.url)
    assert shown.code == 1
    assert "- docs: 'id-7' missing on the target" in shown.out

    assert everything(source.client, "docs") != everything(target.client, "docs")
    mended = program("sync", source.url, target.url, "--json")
    assert mended.code == 0
    row = mended.document["collections"][0]
    assert (row["added"], row["updated"], row["deleted"]) == (10, 3, 1)
    assert everything(source.client, "docs") == everything(target.client, "docs")
    assert program("verify", source.url, target.url).code == 0


def test_a_worker_that_is_killed_leaves_no_gap(program: Program, sides: Sides, ask: Ask) -> None:
    source, target = sides
    fill(source.client, "docs", 6000, dimension=128)
    with program.start(
        "sync", source.url, target.url, "--workers", "3", "--chunk-size", "100", "--json"
    ) as running:
        victim = eventually(
            lambda: ask(
                "SELECT w.pid, t.id FROM sync_tasks t JOIN sync_workers w USING (worker_id)"
                " WHERE t.task_status = 'processing'"
                " AND (SELECT count(*) FROM sync_tasks WHERE task_status = 'completed') > 5"
            ),
            within=60,
        )[0]
        os.kill(int(str(victim[0])), signal.SIGKILL)
        out, err = running.communicate(timeout=100)
    assert running.returncode == 0, err
    assert '"verified": true' in out
    assert ask("SELECT count(*) FROM sync_workers WHERE worker_status = 'dead'") == [(1,)]
    assert ask(
        "SELECT count(*) FROM sync_tasks t LEFT JOIN sync_results r ON r.task_id = t.id"
        " WHERE r.task_id IS NULL"
    ) == [(0,)]
    assert everything(source.client, "docs") == everything(target.client, "docs")


def test_workers_elsewhere_do_the_work(program: Program, sides: Sides, ask: Ask) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    workers = [program.start("worker") for _ in range(2)]
    try:
        done = program("sync", source.url, target.url, "--workers", "0", "--chunk-size", "10")
        assert done.code == 0, done.err
        assert "verified" in done.out
    finally:
        for worker in workers:
            worker.terminate()
        codes = [worker.wait(timeout=10) for worker in workers]
        for worker in workers:
            worker.communicate()
    assert codes == [0, 0]
    assert ask("SELECT DISTINCT worker_status FROM sync_workers") == [("stopped",)]


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["inside", "processes"])
def test_ctrl_c_stops_soon_and_the_same_command_goes_on(
    program: Program, sides: Sides, ask: Ask, workers: tuple[str, ...]
) -> None:
    source, target = sides
    fill(source.client, "docs", 6000, dimension=128)
    command = ("sync", source.url, target.url, "--chunk-size", "100", *workers)
    with program.start(*command) as running:
        wait_for_a_chunk(ask)
        running.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, err = running.communicate(timeout=20)
        assert time.monotonic() - began < 5
    assert running.returncode == 130
    assert "Interrupted." in err
    assert "Traceback" not in err
    ((run_id, status),) = ask("SELECT id, status FROM sync_runs")
    assert status == "interrupted"
    assert ask("SELECT 1 FROM sync_tasks WHERE task_status = 'processing'") == []
    ((before,),) = ask("SELECT count(*) FROM sync_results")
    assert 0 < int(str(before)) < 60

    resumed = program(*command, "--json")
    assert resumed.code == 0, resumed.err
    said = re.search(rf"Going on with run {run_id}: (\d+) of 60 chunks are done", resumed.err)
    assert said is not None
    # Worker processes are up by then, and may have gone on already.
    assert int(str(before)) <= int(said[1]) < 60
    assert resumed.document["run_id"] == str(run_id)
    assert everything(source.client, "docs") == everything(target.client, "docs")


def test_a_coordinator_that_is_killed_is_resumed_as_well(
    program: Program, sides: Sides, ask: Ask
) -> None:
    source, target = sides
    fill(source.client, "docs", 4000, dimension=64)
    command = ("sync", source.url, target.url, "--chunk-size", "100", "--workers", "2")
    with program.start(*command) as running:
        wait_for_a_chunk(ask)
        running.kill()
        running.communicate()
    wait_until_workers_are_gone(ask)
    resumed = program(*command, "--json")
    assert resumed.code == 0, resumed.err
    assert "Going on with run" in resumed.err
    assert everything(source.client, "docs") == everything(target.client, "docs")


def test_without_the_process_that_starts_workers_the_command_says_so_and_can_go_on(
    program: Program, sides: Sides, ask: Ask
) -> None:
    source, target = sides
    fill(source.client, "docs", 4000, dimension=64)
    command = ("sync", source.url, target.url, "--chunk-size", "100", "--workers", "2")
    with program.start(*command) as running:
        wait_for_a_chunk(ask)
        (foreman,) = psutil.Process(running.pid).children()
        foreman.kill()
        _, err = running.communicate(timeout=30)
    assert running.returncode == 2
    assert "error: The process that starts the local workers is gone" in err
    assert "Traceback" not in err
    wait_until_workers_are_gone(ask)
    assert program(*command, "--json").code == 0
    assert everything(source.client, "docs") == everything(target.client, "docs")


def test_workers_that_cannot_work_end_the_command(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 10)
    command = ("sync", source.url, target.url, "--workers", "1")
    done = program(*command, SYNC_METRICS_PORT="19200", SYNC_WEB_HOST="0.0.0.0")
    assert done.code == 2
    assert "error: SYNC_API_TOKEN is not set" in done.err
    assert "error: Local workers end with code 2 again and again" in done.err
    assert "Traceback" not in done.err


def test_refused_records_fail_their_chunk_alone_and_can_be_retried(
    program: Program, sides: Sides
) -> None:
    source, target = sides
    fill(source.client, "docs", 50)
    refused = source.client.create_collection("other", embedding_function=None)
    refused.add(ids=["a", "b"], embeddings=vectors([1.0, 2.0], [3.0, 4.0]))
    # Made empty with the wrong dimension afterwards: found when the chunk is written.
    clash = target.client.create_collection("other", embedding_function=None)

    with program.start("sync", source.url, target.url, "--workers", "0", "--json") as waiting:
        eventually(lambda: "No worker is there" in (waiting.stderr or [""]).readline())  # type: ignore[union-attr]
        clash.add(ids=["x"], embeddings=vectors([1.0, 2.0, 3.0]))
        clash.delete(ids=["x"])
        worker = program.start("worker")
        out, err = waiting.communicate(timeout=60)
        worker.terminate()
        worker.communicate(timeout=10)
    assert waiting.returncode == 1, err
    report = json.loads(out)
    assert report["status"] == "failed"
    (failure,) = report["failures"]
    assert failure["collection"] == "other"
    assert [one["id"] for one in failure["refused"]] == ["a", "b"]
    assert "dimension" in failure["error"]
    rows = {row["name"]: row for row in report["collections"]}
    assert (rows["docs"]["added"], rows["docs"]["missing"]) == (50, 0)
    assert (rows["other"]["failed"], rows["other"]["missing"]) == (2, 2)

    target.client.delete_collection("other")
    again = program("retry", report["run_id"], "--json")
    assert again.code == 2  # the collection the plan made is gone
    assert "deleted or made anew" in again.err
    assert program("sync", source.url, target.url).code == 0
    assert everything(source.client, "other") == everything(target.client, "other")


def test_retry_does_what_failed_and_nothing_else(program: Program, sides: Sides, ask: Ask) -> None:
    source, target = sides
    fill(source.client, "docs", 500)
    command = ("sync", source.url, target.url, "--chunk-size", "100", "--json")
    with program.start(*command, "--workers", "0") as waiting:
        # As if the second chunk had been given up on.
        eventually(
            lambda: ask(
                "UPDATE sync_tasks SET task_status = 'failed', error = 'given up'"
                " WHERE chunk_start_offset = 100 RETURNING id"
            )
        )
        worker = program.start("worker")
        out, err = waiting.communicate(timeout=60)
        worker.terminate()
        worker.communicate(timeout=10)
    assert waiting.returncode == 1, err
    report = json.loads(out)
    row = report["collections"][0]
    assert (row["added"], row["missing"], row["failed"]) == (400, 100, 100)

    again = program("retry", report["run_id"][:8], "--json")
    assert again.code == 0, again.err
    assert "Trying 1 failed chunks again." in again.err
    assert (again.document["run_id"], again.document["status"]) == (report["run_id"], "completed")
    assert again.document["collections"][0]["added"] == 500
    assert everything(source.client, "docs") == everything(target.client, "docs")
    assert program("retry", report["run_id"]).code == 2


def test_a_directory_can_be_source_and_target(
    program: Program, sides: Sides, tmp_path: Path
) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    backup = tmp_path / "backup"
    done = program("sync", source.url, str(backup), "--workers", "2", "--json")
    assert done.code == 0, done.err
    assert (backup / "chroma.sqlite3").exists()
    back = program("sync", str(backup), target.url, "--json")
    assert back.code == 0, back.err
    assert everything(source.client, "docs") == everything(target.client, "docs")
    listed = program("status")
    assert str(backup) in listed.out
    none = program("sync", str(backup), target.url, "--workers", "0")
    assert none.code == 2
    assert "leave --workers 0 out" in none.error_line


def test_the_embedded_postgres_is_used_shared_and_stopped(sides: Sides, tmp_path: Path) -> None:
    source, target = sides
    fill(source.client, "docs", 200)
    program = Program(tmp_path, None)
    with (
        program.start("sync", source.url, target.url) as one,
        program.start("status") as other,
    ):
        out, err = one.communicate(timeout=60)
        other.communicate(timeout=60)
    assert (one.returncode, other.returncode) == (0, 0), err
    assert "verified" in out
    assert "completed" in program("status").out
    data = tmp_path / ".local" / "share" / "chroma-sync" / "postgres"
    assert (data / "PG_VERSION").exists()
    assert not (data / "postmaster.pid").exists()


def test_selftest(program: Program) -> None:
    done = program("selftest")
    assert done.code == 0, done.err
    lines = dict(line.rsplit(maxsplit=1) for line in done.out.strip().splitlines())
    assert lines == {
        "tasks created": "10",
        "workers found": "3",
        "tasks completed": "10",
        "tasks pending": "0",
        "duplicates": "0",
        "gaps": "0",
        "verification": "passed",
    }
