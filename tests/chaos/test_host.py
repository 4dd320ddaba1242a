"""The whole host goes down, and comes back."""

from __future__ import annotations

import pytest

from tests.chaos.chroma_process import ChromaProcess
from tests.chaos.conftest import Tell
from tests.chaos.faulty_proxy import FaultyProxy, slow_writes
from tests.chaos.postgres_process import PostgresProcess
from tests.chaos.scene import Scene


def lose_host(
    scene: Scene, postgres: PostgresProcess, servers: list[ChromaProcess], *, workers: int
) -> None:
    """SIGKILL everything, then start everything."""
    held = scene.unsettled_tasks()
    for process in scene.processes:
        if process.is_running:
            process.kill()
    postgres.kill()
    for server in servers:
        server.kill()
    scene.workers.clear()
    for server in servers:
        server.start(wait=False)
    postgres.start()
    for server in servers:
        server.start()
    scene.note_blow(held)
    for _ in range(workers):
        scene.start_worker()


@pytest.mark.parametrize(
    ("times", "workers"),
    [pytest.param(1, 1, id="short"), pytest.param(3, 3, id="long", marks=pytest.mark.chaos)],
)
def test_the_host_is_lost(
    own_scene: Scene,
    own_postgres: PostgresProcess,
    source_server: ChromaProcess,
    target_server: ChromaProcess,
    target_proxy: FaultyProxy,
    tell: Tell,
    times: int,
    workers: int,
) -> None:
    scene = own_scene
    scene.put_before_target(target_proxy)
    target_proxy.rule = slow_writes(0.2)
    scene.start_workers(workers)
    sync = scene.start_sync()
    for _ in range(times):
        scene.wait_for_results(5)
        lose_host(scene, own_postgres, [source_server, target_server], workers=workers)
        sync = scene.start_sync()
    target_proxy.rule = slow_writes(0)
    scene.check(scene.report_of(sync, within=120))
    assert "Going on with run" in sync.log()
    assert scene.ask("SELECT count(*) FROM sync_runs WHERE kind = 'sync'") == [(1,)]
    tell(scene, "the whole host killed")
