"""Stores that go away, answer with errors, and take a write without saying so."""

from __future__ import annotations

import time

import pytest

from tests.chaos.chroma_process import ChromaProcess
from tests.chaos.conftest import SEED, Tell
from tests.chaos.faulty_proxy import Fault, FaultyProxy, Request, Rule, some_requests
from tests.chaos.processes import Process
from tests.chaos.scene import COLLECTION, Scene
from tests.eventually import eventually


def take_away(scene: Scene, server: ChromaProcess, seconds: float) -> None:
    """SIGKILL a server, and start it again after a while."""
    server.kill()
    time.sleep(seconds)
    server.start()
    scene.note_blow(scene.unsettled_tasks())


@pytest.mark.chaos
@pytest.mark.parametrize("which", ["source", "target"])
def test_a_store_is_down_for_20_seconds(
    scene: Scene,
    source_server: ChromaProcess,
    target_server: ChromaProcess,
    tell: Tell,
    which: str,
) -> None:
    scene.start_workers(3)
    sync = scene.start_sync()
    scene.wait_for_results(3)
    take_away(scene, source_server if which == "source" else target_server, 20)
    scene.check(scene.report_of(sync, within=240))
    tell(scene, f"{which} down for 20 s")


# What a proxy, a cloud or a broken server may answer. All of it can pass.
BAD_ANSWERS = (
    Fault(status=500, body=b'{"error": "InternalError", "message": "database is locked"}'),
    Fault(status=503, body=b"<html>Service Unavailable</html>"),
    Fault(status=429, body=b'{"message": "slow down"}', headers={"retry-after": "1"}),
    Fault(status=200, body=b"<html>Welcome</html>"),
    Fault(status=200, body=b'{"ids": ["a", "b"], "embeddings": [[1.0'),
    Fault(cut=True),
    Fault(hang_up=True),
)


def sparing_the_collection(rule: Rule) -> Rule:
    """A chunk reads the source, reads the target and writes. Each may fail once, and three failures
    are what it survives; that its worker cannot open the collection may not come on top."""
    return lambda request: None if request.verb == COLLECTION else rule(request)


def begin_with_bad_answers(
    scene: Scene,
    source_proxy: FaultyProxy,
    target_proxy: FaultyProxy,
    *,
    share: float,
    workers: int,
) -> Process:
    """A run whose stores fail this share of all requests."""
    scene.put_before_source(source_proxy)
    scene.put_before_target(target_proxy)
    scene.start_workers(workers)
    sync = scene.start_sync()
    # Before, a store that cannot be reached is the user's mistake, and told at once.
    eventually(lambda: scene.ask("SELECT 1 FROM sync_runs"))
    for number, proxy in enumerate((source_proxy, target_proxy)):
        proxy.rule = sparing_the_collection(some_requests(SEED + number, share, BAD_ANSWERS))
    return sync


def test_stores_answer_with_errors_and_go_away(
    scene: Scene,
    source_proxy: FaultyProxy,
    target_proxy: FaultyProxy,
    target_server: ChromaProcess,
    tell: Tell,
) -> None:
    sync = begin_with_bad_answers(scene, source_proxy, target_proxy, share=0.1, workers=1)
    scene.wait_for_results(3)
    take_away(scene, target_server, 1.0)
    scene.check(scene.report_of(sync, within=60))
    faults = (source_proxy.faults + target_proxy.faults).total()
    assert faults > 3
    tell(scene, "500, 429, garbage to 10%, target down for 1 s", faults=faults)


@pytest.mark.chaos
def test_stores_answer_with_errors_and_garbage(
    scene: Scene, source_proxy: FaultyProxy, target_proxy: FaultyProxy, tell: Tell
) -> None:
    sync = begin_with_bad_answers(scene, source_proxy, target_proxy, share=0.3, workers=2)
    scene.check(scene.report_of(sync, within=240))
    faults = (source_proxy.faults + target_proxy.faults).total()
    assert faults > 50
    tell(scene, "500, 429, garbage, cut answers to 30%", faults=faults)


@pytest.mark.chaos
def test_writes_are_taken_and_the_connection_is_cut_before_the_answer(
    scene: Scene, target_proxy: FaultyProxy, tell: Tell
) -> None:
    def rule(request: Request) -> Fault | None:
        return Fault(hang_up=True) if request.is_write and request.seen == 0 else None

    scene.put_before_target(target_proxy)
    target_proxy.rule = rule
    scene.start_workers(3)
    sync = scene.start_sync()
    scene.check(scene.report_of(sync, within=240))
    assert target_proxy.faults["hang_up"] >= 120
    tell(scene, "every write taken, its answer never sent", faults=target_proxy.faults["hang_up"])
