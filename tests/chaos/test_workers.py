"""Workers that are killed, told to stop, and paused while they work."""

from __future__ import annotations

import time

import pytest

from tests.chaos.conftest import Tell
from tests.chaos.faulty_proxy import FaultyProxy, slow_writes
from tests.chaos.scene import Scene
from tests.eventually import eventually


def kill_busy_worker(scene: Scene) -> None:
    """SIGKILL a worker in the middle of its work, and start another."""
    victim, held = scene.freeze_busy_worker()
    victim.kill()
    scene.note_blow(held)
    scene.start_worker()


def stop_busy_worker(scene: Scene, *, holding: int) -> float:
    """SIGTERM a worker that has all the work it can hold; the seconds until others have it."""
    victim, held = scene.freeze_busy_worker(holding=holding)
    names = scene.worker_ids(victim.pid)
    began = time.monotonic()
    victim.terminate()
    victim.resume()
    scene.note_blow(held)
    eventually(lambda: scene.has_left(held, names))
    seconds = time.monotonic() - began
    assert victim.wait(within=10) == 0, victim.log_end()
    assert scene.held_tasks(victim.pid) == []
    return seconds


def pause_writing_worker(scene: Scene, proxy: FaultyProxy) -> None:
    """SIGSTOP a worker while the target carries out its write, until others have done its tasks;
    then let it have its answer and go on."""
    held_write = proxy.hold_next_write()
    assert held_write.is_held.wait(30)
    victim = scene.worker_at(held_write.client_port)
    victim.pause()
    held = scene.held_tasks(victim.pid)
    assert held
    names = scene.worker_ids(victim.pid)
    scene.note_blow(held)
    eventually(lambda: len(scene.completed_by(held)) == len(held), within=60)
    before = scene.suppressed()
    held_write.released.set()
    victim.resume()
    eventually(lambda: scene.suppressed() > before)
    assert not {*scene.completed_by(held).values()} & {*names}
    eventually(
        lambda: (
            scene.ask(
                "SELECT worker_status FROM sync_workers WHERE worker_id = ANY (%s)"
                " AND lease_term > 1",
                names,
            )
            == [("active",)]
        )
    )


def test_workers_are_killed_stopped_and_paused(
    scene: Scene, target_proxy: FaultyProxy, tell: Tell
) -> None:
    scene.put_before_target(target_proxy)
    target_proxy.rule = slow_writes(1.5)  # so that the run lasts longer than the blows
    scene.start_workers(2)
    sync = scene.start_sync()
    scene.wait_for_results(3)
    kill_busy_worker(scene)
    pause_writing_worker(scene, target_proxy)
    handback = stop_busy_worker(scene, holding=2)
    target_proxy.rule = slow_writes(0)
    scene.check(scene.report_of(sync, within=60))
    assert handback < 5
    tell(
        scene,
        "a worker killed, one paused, one stopped",
        suppressed=scene.suppressed(),
        handback_s=round(handback, 2),
    )


@pytest.mark.chaos
def test_workers_are_killed_again_and_again(
    scene: Scene, target_proxy: FaultyProxy, tell: Tell
) -> None:
    scene.put_before_target(target_proxy)
    target_proxy.rule = slow_writes(2)  # so that the run lasts longer than the blows
    scene.start_workers(3)
    sync = scene.start_sync()
    scene.wait_for_results(5)
    for _ in range(8):
        kill_busy_worker(scene)
        scene.let_run(sync, 3)
    target_proxy.rule = slow_writes(0)
    scene.check(scene.report_of(sync, within=120))
    tell(scene, "workers killed in the middle of a chunk")


@pytest.mark.chaos
def test_workers_are_told_to_stop_with_all_they_can_hold(
    scene: Scene, target_proxy: FaultyProxy, tell: Tell
) -> None:
    scene.put_before_target(target_proxy)
    target_proxy.rule = slow_writes(0.5)
    scene.start_workers(2, SYNC_WORKER_THREADS="8")
    sync = scene.start_sync()
    scene.wait_for_results(5)
    handback = 0.0
    for _ in range(4):
        handback = max(handback, stop_busy_worker(scene, holding=8))
        scene.start_workers(1, SYNC_WORKER_THREADS="8")
    target_proxy.rule = slow_writes(0)
    scene.check(scene.report_of(sync, within=120))
    assert handback < 5
    assert scene.suppressed() == 0
    tell(scene, "workers told to stop with a full prefetch", handback_s=round(handback, 2))


@pytest.mark.chaos
def test_workers_are_paused_past_their_lease(
    scene: Scene, target_proxy: FaultyProxy, tell: Tell
) -> None:
    scene.put_before_target(target_proxy)
    target_proxy.rule = slow_writes(2)
    scene.start_workers(3)
    sync = scene.start_sync()
    scene.wait_for_results(5)
    for _ in range(3):
        pause_writing_worker(scene, target_proxy)
    target_proxy.rule = slow_writes(0)
    scene.check(scene.report_of(sync, within=120))
    assert scene.suppressed() >= 3
    tell(scene, "workers paused past their lease", suppressed=scene.suppressed())
