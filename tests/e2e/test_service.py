"""Pairs on a schedule, roles, and the control of runs, as an operator uses them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.e2e.conftest import Ask, Program, Side, everything, fill
from tests.eventually import eventually

Sides = tuple[Side, Side]


def is_alike(source: Side, target: Side, name: str) -> bool:
    if name not in {collection.name for collection in target.client.list_collections()}:
        return False
    wanted = everything(source.client, name)
    collection = target.client.get_collection(name, embedding_function=None)
    # Not while it is just being filled: its pages would not fit together.
    return collection.count() == len(wanted) and everything(target.client, name) == wanted


def test_pairs_are_kept_alike_while_their_source_changes(
    program: Program, sides: Sides, ask: Ask, tmp_path: Path
) -> None:
    source, target = sides
    docs = fill(source.client, "docs", 200)
    fill(source.client, "notes", 50)
    pairs = tmp_path / "pairs.toml"
    pairs.write_text(
        f"""
        [[pair]]
        name = "docs"
        source = "{source.url}"
        target = "{target.url}"
        collections = ["docs"]
        every = 1

        [[pair]]
        name = "backup"
        source = "{source.url}"
        target = "{tmp_path / "backup"}"
        include = ["n*"]
        every = 1000
        """
    )
    with program.start("coordinator", SYNC_PAIRS=str(pairs)) as coordinator:
        eventually(lambda: is_alike(source, target, "docs"), within=60)
        docs.delete(ids=["id-1", "id-2"])
        docs.update(ids=["id-3"], documents=["changed"], embeddings=docs.get(
            ["id-3"], include=["embeddings"])["embeddings"])  # fmt: skip
        eventually(lambda: is_alike(source, target, "docs"), within=60)
        done = "SELECT 1 FROM sync_runs WHERE pair = 'backup' AND verified"
        eventually(lambda: ask(done), within=60)
        listed = json.loads(program("pairs", "--json").out)
        assert [one["name"] for one in listed] == ["backup", "docs"]
        assert all(one["fresh_as_of"] for one in listed)
        assert "paused" in program("pairs", "backup", "--do", "pause").out
        assert program("pairs", "backup", "--do", "resume").code == 0
        assert program("pairs", "backup", "--do", "verify").code == 0
        proven = "SELECT 1 FROM sync_runs WHERE pair = 'backup' AND kind = 'verify' AND verified"
        eventually(lambda: ask(proven + " AND parent_run_id IS NULL"), within=60)
        assert "There is no pair 'none'" in program("pairs", "none", "--do", "sync").error_line
        coordinator.send_signal(signal.SIGTERM)
        out, err = coordinator.communicate(timeout=30)
    assert coordinator.returncode == 0, err
    assert "docs: verified" in out
    # One pair never has two runs at once.
    assert (
        ask(
            "SELECT 1 FROM sync_runs a JOIN sync_runs b USING (pair)"
            " WHERE a.id <> b.id AND a.parent_run_id IS NULL AND b.parent_run_id IS NULL"
            " AND a.created_at < b.created_at"
            " AND coalesce(a.finished_at, 'infinity') > b.created_at"
        )
        == []
    )
    assert ask("SELECT 1 FROM sync_tasks WHERE task_status = 'processing'") == []
    assert ask("SELECT name FROM sync_pairs ORDER BY 1") == [("backup",), ("docs",)]


def test_one_process_does_everything_and_two_share_the_roles(
    program: Program, sides: Sides, ask: Ask
) -> None:
    source, target = sides
    docs = fill(source.client, "docs", 100)
    pair = {"SYNC_SOURCE_URL": source.url, "SYNC_TARGET_URL": target.url, "SYNC_INTERVAL": "1"}
    alone = program.start("run", **pair)
    eventually(lambda: is_alike(source, target, "docs"), within=60)
    alone.terminate()
    alone.communicate(timeout=30)
    assert alone.returncode == 0
    docs.delete(ids=["id-1"])
    coordinator = program.start(
        "run", **pair, SYNC_DISTRIBUTED="true", SYNC_COORDINATOR="true", ENABLE_SYNC_WORKER="false"
    )
    worker = program.start("run", SYNC_DISTRIBUTED="true")
    eventually(lambda: is_alike(source, target, "docs"), within=60)
    for process in (coordinator, worker):
        process.terminate()
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
    assert {pid for (pid,) in ask("SELECT pid FROM sync_workers")} == {alone.pid, worker.pid}
    nothing = program("run")
    assert (nothing.code, "SYNC_SOURCE_URL" in nothing.error_line) == (2, True)


def test_a_run_is_paused_resumed_and_cancelled(program: Program, sides: Sides, ask: Ask) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    command = ("sync", source.url, target.url, "--workers", "0", "--chunk-size", "100")
    with program.start(*command) as waiting:
        ((run_id,),) = eventually(lambda: ask("SELECT id FROM sync_runs WHERE status = 'running'"))
        assert program("pause", str(run_id)).out == f"run {run_id} is paused\n"
        worker = program.start("worker")
        eventually(lambda: ask("SELECT 1 FROM sync_workers WHERE worker_status = 'active'"))
        ((before,),) = ask("SELECT clock_timestamp()")
        assert program("resume", str(run_id)[:8]).code == 0
        waiting.communicate(timeout=60)
        assert waiting.returncode == 0
        ((first,),) = ask("SELECT min(started_at) FROM sync_tasks")
        assert first > before
    worker.terminate()
    worker.communicate(timeout=10)
    ended = program("pause", str(run_id))
    assert "has ended: it is completed" in ended.error_line
    source.client.get_collection("docs", embedding_function=None).delete(ids=["id-1"])
    with program.start(*command) as waiting:
        ((other,),) = eventually(lambda: ask("SELECT id FROM sync_runs WHERE status = 'running'"))
        assert program("cancel", str(other)).code == 0
        _, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 2
    assert f"Run {other} was cancelled." in err
    assert target.client.get_collection("docs", embedding_function=None).count() == 300


def test_limits_are_set_and_shown(program: Program) -> None:
    assert program("throttle").out == ""
    server = "http://localhost:8000"
    shown = program("throttle", server, "--records-per-second", "250", "--in-flight", "3")
    assert shown.out == f"{server}: 250 records/s, 3 requests in flight\n"
    assert program("throttle").out == shown.out
    assert program("throttle", server, "--off").out == ""
    assert program("throttle", "--in-flight", "3").code == 2


def test_the_doctor_says_what_is_wrong(program: Program, sides: Sides, tmp_path: Path) -> None:
    source, _ = sides
    healthy = program("doctor", source.url, str(tmp_path / "new"), "--json")
    assert healthy.code == 0, healthy.out
    assert "Chroma 1." in healthy.out
    assert '"bad"' not in healthy.out
    ill = program("doctor", "http://127.0.0.1:9", str(tmp_path / "no" / "new"))
    assert ill.code == 1
    assert "is the server running?" in ill.out
    assert f"{tmp_path / 'no'} does not exist" in ill.out
    away = program("doctor", DATABASE_URL="postgresql://u:hush@127.0.0.1:9/x")
    assert (away.code, "does not connect" in away.out, "hush" in away.out) == (1, True, False)
