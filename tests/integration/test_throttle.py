"""Limits of a server hold for all workers together, and change while they wait."""

from __future__ import annotations

import threading
import time

import pytest

from tasks import throttle as throttle_module
from tasks.database import Database
from tasks.throttle import Limits, Throttles, read_limits, set_limits
from tests.integration.ledger_rows import add_worker, end_lease

SERVER = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle_module, "LOOK_SECONDS", 0.05)


def throttles(database: Database, worker_id: str) -> Throttles:
    return Throttles(database, worker_id=worker_id, stopping=threading.Event())


def test_a_rate_is_shared_by_all_workers(database: Database) -> None:
    set_limits(database, SERVER, Limits(records_per_second=200))
    workers = [throttles(database, f"w{number}") for number in range(3)]

    def work(worker: Throttles) -> None:
        for _ in range(4):
            with worker.request(SERVER, 10):
                pass

    threads = [threading.Thread(target=work, args=[worker]) for worker in workers]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # 12 requests of 10 records; the last may begin when the 11 before it are paid for.
    assert time.monotonic() - began >= 110 / 200
    began = time.monotonic()
    with workers[0].request("http://another:1", 10_000):
        pass
    assert time.monotonic() - began < 5


def test_a_limit_that_is_lifted_frees_those_who_wait(database: Database) -> None:
    set_limits(database, SERVER, Limits(records_per_second=0.001))
    worker = throttles(database, "w")
    with worker.request(SERVER, 1):  # the first does not wait
        pass
    through = threading.Event()

    def wait() -> None:
        with worker.request(SERVER, 1):
            through.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not through.wait(0.3)
    set_limits(database, SERVER, Limits())
    assert through.wait(10)
    thread.join()
    assert read_limits(database) == {}


def test_no_more_requests_are_under_way_than_allowed(database: Database) -> None:
    set_limits(database, SERVER, Limits(requests_in_flight=2))
    for name in ("one", "two"):
        add_worker(database, name)
    one, two = throttles(database, "one"), throttles(database, "two")
    through, over = threading.Event(), threading.Event()

    def wait() -> None:
        with two.request(SERVER, 1):
            through.set()
            over.wait(20)

    with one.request(SERVER, 1):
        with two.request(SERVER, 1):
            third = threading.Thread(target=wait)
            third.start()
            assert not through.wait(0.5)
        assert through.wait(20)
    over.set()
    third.join()


def test_a_dead_worker_holds_no_place(database: Database) -> None:
    set_limits(database, SERVER, Limits(requests_in_flight=1))
    add_worker(database, "dead")
    add_worker(database, "alive")
    held = throttles(database, "dead").request(SERVER, 1)
    held.__enter__()
    through = threading.Event()

    def wait() -> None:
        with throttles(database, "alive").request(SERVER, 1):
            through.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not through.wait(0.3)
    end_lease(database, "dead")
    assert through.wait(10)
    thread.join()
