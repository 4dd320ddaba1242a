"""Coordinators that are killed and paused while they lead, and several at once."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.chaos.conftest import Tell
from tests.chaos.faulty_proxy import FaultyProxy, slow_writes
from tests.chaos.processes import Process
from tests.chaos.scene import Scene
from tests.eventually import eventually


def start_coordinators(scene: Scene, count: int) -> list[Process]:
    """As a Procfile would: each may lead, the others stand by."""
    return [start_coordinator(scene) for _ in range(count)]


def start_coordinator(scene: Scene) -> Process:
    return scene.run(
        "coordinator",
        name="coordinator",
        SYNC_SOURCE_URL=scene.source_url,
        SYNC_TARGET_URL=scene.target_url,
        ENABLE_SYNC_WORKER="false",
    )


def leadership(scene: Scene) -> tuple[int, int]:
    """The process that leads, and its term; (0, 0) if nobody does."""
    rows = scene.ask(
        "SELECT holder, term FROM sync_leases"
        " WHERE name = 'schedule' AND expires_at > clock_timestamp()"
    )
    if not rows:
        return 0, 0
    ((holder, term),) = rows
    return int(str(holder).split("-")[-2]), int(term)  # host-pid-random


def leader(scene: Scene, coordinators: list[Process], *, after_term: int = 0) -> Process:
    """Wait for a leader of a later term."""

    def found() -> Process | None:
        pid, term = leadership(scene)
        leading = [one for one in coordinators if one.pid == pid]
        return leading[0] if term > after_term and leading else None

    process = eventually(found, within=30)
    assert process is not None
    return process


def finished_report(scene: Scene, *, within: float) -> dict[str, Any]:
    """The report of the first sync, once it is over."""
    rows = eventually(
        lambda: scene.ask(
            "SELECT report FROM sync_runs WHERE kind = 'sync' AND finished_at IS NOT NULL"
            " ORDER BY created_at"
        ),
        within=within,
    )
    report = rows[0][0]
    assert isinstance(report, dict)
    return report


def check_there_was_one_run(scene: Scene) -> None:
    """Whoever led, it was one run: the next leader went on with what it found."""
    assert scene.ask("SELECT count(*) FROM sync_runs WHERE kind = 'sync'") == [(1,)]


def kill_leader(scene: Scene, coordinators: list[Process]) -> float:
    """SIGKILL the leader, and start another coordinator; seconds until somebody leads."""
    victim = leader(scene, coordinators)
    _, term = leadership(scene)
    victim.kill()
    killed = time.monotonic()
    scene.note_blow()
    coordinators.remove(victim)
    leader(scene, coordinators, after_term=term)
    took = time.monotonic() - killed
    coordinators.append(start_coordinator(scene))
    return took


def pause_leader(scene: Scene, coordinators: list[Process]) -> tuple[float, Process]:
    """SIGSTOP the leader until another leads, and let it go on; seconds until then."""
    victim = leader(scene, coordinators)
    _, term = leadership(scene)
    victim.pause()
    paused = time.monotonic()
    scene.note_blow()
    successor = leader(scene, coordinators, after_term=term)
    took = time.monotonic() - paused
    victim.resume()
    # It finds out, stands by, and does not end the lease of its successor.
    eventually(lambda: "standing by" in victim.log(), within=30)
    assert victim.is_running
    assert leadership(scene)[0] == successor.pid
    return took, victim


def test_of_two_coordinators_the_leader_is_killed(
    scene: Scene, target_proxy: FaultyProxy, tell: Tell
) -> None:
    scene.put_before_target(target_proxy)
    target_proxy.rule = slow_writes(0.2)
    coordinators = start_coordinators(scene, 2)
    scene.start_workers(1)
    scene.wait_for_results(3)
    took = kill_leader(scene, coordinators)
    target_proxy.rule = slow_writes(0)
    scene.check(finished_report(scene, within=60))
    check_there_was_one_run(scene)
    tell(scene, "two coordinators at once, the leader killed", takeover_s=round(took, 1))


@pytest.mark.chaos
def test_leaders_are_killed_again_and_again(
    scene: Scene, target_proxy: FaultyProxy, tell: Tell
) -> None:
    scene.put_before_target(target_proxy)
    target_proxy.rule = slow_writes(0.5)
    coordinators = start_coordinators(scene, 3)
    scene.start_workers(2)
    scene.wait_for_results(3)
    took = max(kill_leader(scene, coordinators) for _ in range(3))
    target_proxy.rule = slow_writes(0)
    scene.check(finished_report(scene, within=120))
    check_there_was_one_run(scene)
    assert took < 10
    tell(scene, "leading coordinators killed", takeover_s=round(took, 1))


@pytest.mark.chaos
def test_leaders_are_paused_past_their_lease(
    scene: Scene, target_proxy: FaultyProxy, tell: Tell
) -> None:
    scene.put_before_target(target_proxy)
    target_proxy.rule = slow_writes(0.5)
    coordinators = start_coordinators(scene, 2)
    scene.start_workers(2)
    scene.wait_for_results(3)
    took = max(pause_leader(scene, coordinators)[0] for _ in range(2))
    target_proxy.rule = slow_writes(0)
    scene.check(finished_report(scene, within=120))
    check_there_was_one_run(scene)
    assert took < 10
    tell(scene, "leading coordinators paused past their lease", takeover_s=round(took, 1))


@pytest.mark.chaos
def test_two_syncs_are_started_at_once(scene: Scene, target_proxy: FaultyProxy, tell: Tell) -> None:
    scene.put_before_target(target_proxy)
    target_proxy.rule = slow_writes(0.3)
    scene.start_workers(3)
    both = [scene.start_sync(), scene.start_sync()]
    # The lease of the one is renewed for longer than the other is willing to wait.
    refused = eventually(lambda: next((one for one in both if not one.is_running), None), within=60)
    assert refused is not None
    doing = both[1 - both.index(refused)]
    assert doing.is_running
    target_proxy.rule = slow_writes(0)
    assert refused.code == 2
    assert refused.output() == ""
    (told,) = [line for line in refused.log().splitlines() if line.startswith("error: ")]
    assert "Another chroma-sync is at work on this source and target" in told
    scene.check(scene.report_of(doing, within=120))
    check_there_was_one_run(scene)
    tell(scene, "two syncs started at once")
