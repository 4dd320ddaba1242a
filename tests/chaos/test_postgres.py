"""A Postgres that is restarted, cuts connections, and has none left."""

from __future__ import annotations

import time

import psycopg
import pytest

from tests.chaos.conftest import Tell
from tests.chaos.faulty_proxy import FaultyProxy, slow_writes
from tests.chaos.postgres_process import PostgresProcess
from tests.chaos.processes import Process
from tests.chaos.scene import MakeScene, Scene
from tests.eventually import eventually

CUT = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'chroma-sync'"
)

STOP_SECONDS = 20.0  # the platforms give 30


def begin(scene: Scene, proxy: FaultyProxy, *, workers: int, write_seconds: float) -> Process:
    """A run that has got going, and is slow enough to be met by what comes."""
    scene.put_before_target(proxy)
    proxy.rule = slow_writes(write_seconds)
    scene.start_workers(workers)
    sync = scene.start_sync()
    scene.wait_for_results(3)
    return sync


def restart(scene: Scene, server: PostgresProcess, *, away: float = 0.0) -> None:
    """Cut everybody off, and be back after `away` seconds."""
    if away:
        server.stop()
        time.sleep(away)
        server.start()
    else:
        server.restart()
    scene.note_blow(scene.unsettled_tasks())


def cut_connections(scene: Scene, seconds: float) -> int:
    """Terminate all connections of ours twice a second; returns how many there were."""
    cut = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        cut += int(scene.ask(CUT)[0][0])
        time.sleep(0.5)
    scene.note_blow(scene.unsettled_tasks())
    return cut


# Restarts ---------------------------------------------------------------------------------------


def test_postgres_is_restarted_cuts_connections_and_has_none_left(
    make_scene: MakeScene,
    own_postgres: PostgresProcess,
    own_database_url: str,
    limited_role: str,
    target_proxy: FaultyProxy,
    tell: Tell,
) -> None:
    scene = make_scene(limited_role)
    scene.ledger_url = own_database_url
    sync = begin(scene, target_proxy, workers=2, write_seconds=0.3)
    restart(scene, own_postgres)
    scene.wait_for_results(2)
    cut = cut_connections(scene, 2)
    take_all_connections(scene, limited_role, left=0, seconds=2)
    scene.check(scene.report_of(sync, within=60))
    tell(scene, "Postgres restarted, connections cut, none left", cut=cut)


def test_who_is_told_to_stop_does_not_wait_for_a_postgres_that_is_gone(
    own_scene: Scene, own_postgres: PostgresProcess, target_proxy: FaultyProxy
) -> None:
    own_scene.put_before_target(target_proxy)
    target_proxy.rule = slow_writes(0.3)
    coordinator = own_scene.run(
        "coordinator",
        name="coordinator",
        SYNC_SOURCE_URL=own_scene.source_url,
        SYNC_TARGET_URL=own_scene.target_url,
    )
    eventually(own_scene.has_ledger, within=60)
    own_scene.wait_for_results(3)
    worker = own_scene.start_worker()
    eventually(lambda: own_scene.worker_ids(worker.pid), within=60)
    own_postgres.stop()
    for process in (coordinator, worker):
        process.terminate()
    for process in (coordinator, worker):
        assert process.wait(within=STOP_SECONDS) == 0


@pytest.mark.chaos
def test_postgres_is_restarted_again_and_again(
    own_scene: Scene, own_postgres: PostgresProcess, target_proxy: FaultyProxy, tell: Tell
) -> None:
    sync = begin(own_scene, target_proxy, workers=3, write_seconds=0.5)
    for _ in range(4):
        restart(own_scene, own_postgres)
        own_scene.wait_for_results(2)
        own_scene.let_run(sync, own_scene.random.uniform(0, 2))
    assert sync.is_running
    own_scene.check(own_scene.report_of(sync, within=120))
    tell(own_scene, "Postgres restarted, -m immediate")


@pytest.mark.chaos
def test_postgres_is_away_for_20_seconds(
    own_scene: Scene, own_postgres: PostgresProcess, target_proxy: FaultyProxy, tell: Tell
) -> None:
    sync = begin(own_scene, target_proxy, workers=3, write_seconds=0.2)
    restart(own_scene, own_postgres, away=20)
    own_scene.check(own_scene.report_of(sync, within=120))
    tell(own_scene, "Postgres away for 20 s")


# Connections ------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_connections_are_cut_twice_a_second(
    own_scene: Scene, target_proxy: FaultyProxy, tell: Tell
) -> None:
    sync = begin(own_scene, target_proxy, workers=3, write_seconds=0.7)
    cut = cut_connections(own_scene, 20)
    own_scene.check(own_scene.report_of(sync, within=120))
    tell(own_scene, "connections cut twice a second for 20 s", cut=cut)


@pytest.mark.chaos
def test_connections_are_cut_from_the_plan_to_the_report(own_scene: Scene, tell: Tell) -> None:
    own_scene.start_workers(2)
    sync = own_scene.start_sync()
    eventually(lambda: own_scene.ask("SELECT 1 FROM sync_runs"))
    cut = 0
    while sync.is_running:
        cut += int(own_scene.ask(CUT)[0][0])
        time.sleep(0.5)
    own_scene.note_blow()
    own_scene.check(own_scene.report_of(sync, within=1))
    tell(own_scene, "connections cut from the plan to the report", cut=cut)


@pytest.fixture
def limited_role(own_postgres: PostgresProcess, own_database_url: str) -> str:
    """The URL of the database for a role that owns it, and may be kept out of it."""
    name = "limited"
    with psycopg.connect(own_database_url, autocommit=True) as connection:
        if not connection.execute("SELECT FROM pg_roles WHERE rolname = 'limited'").fetchall():
            connection.execute("CREATE ROLE limited LOGIN")
        connection.execute("ALTER ROLE limited CONNECTION LIMIT -1")
        connection.execute(f"ALTER DATABASE {connection.info.dbname} OWNER TO limited".encode())
        connection.execute("GRANT ALL ON SCHEMA public TO limited")
    return own_database_url.replace("//postgres:", f"//{name}:")


def take_all_connections(scene: Scene, role_url: str, *, left: int, seconds: float) -> None:
    """Hold idle connections for a while, so that the role may have only `left` more."""
    idle = [psycopg.connect(role_url) for _ in range(20)]
    try:
        scene.ask(f"ALTER ROLE limited CONNECTION LIMIT {len(idle) + left}")
        scene.ask(CUT)  # they find the door closed
        time.sleep(seconds)
    finally:
        for connection in idle:
            connection.close()
        scene.ask("ALTER ROLE limited CONNECTION LIMIT -1")
    scene.note_blow(scene.unsettled_tasks())


@pytest.mark.chaos
def test_no_connection_is_left(
    make_scene: MakeScene,
    own_database_url: str,
    limited_role: str,
    target_proxy: FaultyProxy,
    tell: Tell,
) -> None:
    scene = make_scene(limited_role)
    scene.ledger_url = own_database_url
    sync = begin(scene, target_proxy, workers=2, write_seconds=0.2)
    for left in (0, 3):
        take_all_connections(scene, limited_role, left=left, seconds=10)
    scene.check(scene.report_of(sync, within=120))
    tell(scene, "no connection left for 10 s, then 3 for all")
