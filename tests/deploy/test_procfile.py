"""The Procfile under honcho, as it stands: a service that outlives its workers and its leader."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
from playwright.sync_api import Locator, Page, expect

from tasks.stores.server import _DIE_WITH_PARENT
from tests.browser import Open
from tests.chaos.processes import Process
from tests.deploy.conftest import ROOT
from tests.deploy.prometheus import Scrape, needs_prometheus
from tests.deploy.prometheus import prometheus as prometheus
from tests.e2e.conftest import Program, Side, embedding_of, everything, fill, open_side
from tests.eventually import eventually
from tests.ports import free_port

SCALE = "coordinator=2,worker=3"
COORDINATORS, WORKERS = 3, 3  # one of the coordinators is `web`
PATIENCE = 120.0  # seconds; honcho alone takes several to start so many processes
WORKER_DIED = 'ALERTS{alertname="ChromaSyncWorkerDied", alertstate="firing"}'
UNFINISHED = "SELECT id FROM sync_runs WHERE finished_at IS NULL"
LAG_TOLERANCE = 3.0  # seconds; a sample is up to a second old
Ask = Callable[..., list[tuple[Any, ...]]]


@contextlib.contextmanager
def honcho(*arguments: str, environ: dict[str, str], directory: Path) -> Iterator[Process]:
    """`honcho start`; it is told to stop even if the tests are killed, and stops all the others."""
    command = [sys.executable, "-m", "honcho", "start", "-d", str(ROOT), *arguments]
    process = Process(
        [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), *command],
        environ=environ,
        directory=directory,
        name="honcho",
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(within=PATIENCE)


@contextlib.contextmanager
def changing(side: Side, name: str) -> Iterator[None]:
    """A collection to which something happens all the time: records are added and deleted."""
    collection = side.client.get_collection(name, embedding_function=None)
    vector = embedding_of(side.client, name, "id-0")
    resting = threading.Event()

    def change() -> None:
        for number in itertools.count():
            if resting.wait(0.05):
                return
            collection.upsert([f"new-{number}"], vector, documents=[f"the {number}th"])
            if number % 3 == 0:
                collection.delete([f"new-{number // 2}"])

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        resting.set()
        thread.join()


@pytest.fixture
def ask(database_url: str) -> Iterator[Ask]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield lambda query, *values: connection.execute(query, values).fetchall()


def active(ask: Ask) -> dict[int, str]:
    """The processes that work, by their ids."""
    return dict(ask("SELECT pid, worker_id FROM sync_workers WHERE worker_status = 'active'"))


def leader(ask: Ask, *, after: int = 0) -> list[Any]:
    """The term, the name and the process of who leads, in a later term; nothing if nobody does."""
    rows = ask(
        "SELECT term, holder FROM sync_leases"
        " WHERE name = 'schedule' AND expires_at > now() AND term > %s",
        after,
    )
    return [*rows[0], int(rows[0][1].split("-")[-2])] if rows else []


def page_of(pid: int) -> str:
    """Where a coordinator serves its page: each on the port that it was given."""

    def served() -> str:
        for one in psutil.Process(pid).net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN:
                return f"http://{one.laddr.ip}:{one.laddr.port}/"
        return ""

    return eventually(served, within=PATIENCE)


def ended_runs(ask: Ask) -> int:
    """How many runs have ended. While the source changes, none can find both sides alike."""
    ended = "SELECT count(*) FROM sync_runs WHERE parent_run_id IS NULL AND finished_at < now()"
    return int(ask(ended)[0][0])


def is_worker(pid: int) -> bool:
    return psutil.Process(pid).cmdline()[-1] == "worker"


def row_of(page: Page, worker: str) -> Locator:
    """A worker's line on the page."""
    return page.locator("#workers tr", has_text=worker)


@needs_prometheus
def test_it_outlives_a_worker_and_the_leader(
    servers: tuple[str, str],
    program: Program,
    ask: Ask,
    opened: Open,
    prometheus: Scrape,
    tmp_path: Path,
) -> None:
    source, target = (open_side(url, "procfile") for url in servers)
    fill(source.client, "docs", 1000)
    # Slow enough to be watched, on a fast machine too.
    assert program("throttle", servers[0], "--records-per-second", "500").code == 0
    environ = program.environ | {
        "SYNC_SOURCE_URL": source.url,
        "SYNC_TARGET_URL": target.url,
        "SYNC_INTERVAL": "1",
        "SYNC_CHUNK_SIZE": "100",
        "PORT": str(free_port(beside=(100, 101))),  # web and two coordinators
    }
    with honcho("-c", SCALE, environ=environ, directory=tmp_path) as everybody:

        def all_work() -> dict[int, str]:
            assert everybody.is_running, everybody.output()
            found = active(ask)  # the coordinators have a worker inside
            return found if len(found) == COORDINATORS + WORKERS else {}

        with changing(source, "docs"):
            at_first = eventually(all_work, within=PATIENCE)
            term, holder, pid = eventually(lambda: leader(ask), within=PATIENCE)
            coordinators = {one: page_of(one) for one in at_first if not is_worker(one)}
            metrics = prometheus(
                coordinator=[urlsplit(url).netloc for url in coordinators.values()]
            )
            eventually(lambda: ended_runs(ask), within=PATIENCE)

            # The page of a coordinator that outlives the others.
            page = opened(next(url for one, url in coordinators.items() if one != pid))
            expect(page.locator("#leader")).to_have_text(f"led by {holder}, term {term}")
            for worker in at_first.values():
                expect(row_of(page, worker)).to_have_attribute("data-status", "active")
            expect(page.locator(".pair")).to_contain_text("caught up")
            expect(page.locator(".grid canvas")).to_have_attribute(
                "aria-label", re.compile(r"\d+ completed, [1-9] being worked on")
            )
            alive = 'min(chroma_sync_workers{status="active"})'
            eventually(lambda: metrics.value(alive) == COORDINATORS + WORKERS, within=PATIENCE)
            assert not metrics.query(WORKER_DIED)

            # A worker is killed.
            victim = next(one for one in at_first if is_worker(one))
            os.kill(victim, signal.SIGKILL)
            expect(row_of(page, at_first[victim])).to_have_attribute("data-status", "dead")
            eventually(all_work, within=PATIENCE)
            (alert,) = eventually(lambda: metrics.query(WORKER_DIED), within=PATIENCE)
            assert alert["metric"]["worker"] == at_first[victim]

            # The leader is killed.
            os.kill(pid, signal.SIGKILL)
            later, successor, successor_pid = eventually(
                lambda: leader(ask, after=term), within=PATIENCE
            )
            assert successor_pid != pid
            eventually(all_work, within=PATIENCE)
            expect(page.locator("#leader")).to_have_text(f"led by {successor}, term {later}")
            expect(row_of(page, at_first[pid])).to_have_attribute("data-status", "dead")
            eventually(
                lambda: metrics.query(f'chroma_sync_leader{{holder="{successor}"}}'),
                within=PATIENCE,
            )
            so_far = ended_runs(ask)
            eventually(lambda: ended_runs(ask) > so_far, within=PATIENCE)

        # The source rests. A run that begins now finds both sides alike, and so do we.
        now = ask("SELECT now()")[0][0]
        whole = "SELECT FROM sync_runs WHERE parent_run_id IS NULL AND verified AND created_at > %s"
        eventually(lambda: ask(whole, now), within=PATIENCE)
        assert everything(source.client, "docs") == everything(target.client, "docs")
        expect(page.locator(".pair")).to_contain_text("verified alike")

        # The command, the page and Prometheus say the same. Nothing moves meanwhile.
        (pair,) = json.loads(program("pairs", "--json").out)
        assert program("pairs", pair["name"], "--do", "pause").code == 0
        eventually(lambda: not ask(UNFINISHED), within=PATIENCE)
        (pair,) = json.loads(program("pairs", "--json").out)
        newest = json.loads(program("status", "--json").out)[0]
        assert (newest["status"], newest["verified"]) == ("completed", True)
        chunks = json.loads(program("status", newest["run_id"], "--json").out)["chunks"]
        assert chunks["completed"] == chunks["planned"] == newest["chunks"]["completed"]
        expect(page.locator(".pair")).to_contain_text("paused")
        expect(page.locator("#work-cards code").first).to_have_attribute("title", newest["run_id"])
        expect(page.locator(".grid canvas").first).to_have_attribute(
            "aria-label",
            re.compile(f"^{chunks['planned']} chunks: {chunks['completed']} completed"),
        )
        verified = datetime.fromisoformat(pair["fresh_as_of"]).timestamp()
        lag = "max(timestamp(chroma_sync_pair_lag_seconds) - chroma_sync_pair_lag_seconds)"
        eventually(
            lambda: abs((metrics.value(lag) or 0.0) - verified) < LAG_TOLERANCE, within=PATIENCE
        )
        completed = ask("SELECT count(*) FROM sync_tasks WHERE task_status = 'completed'")[0][0]
        told = "max by (instance) (sum by (instance) (chroma_sync_chunks_completed_total))"
        eventually(
            lambda: {float(one["value"][1]) for one in metrics.query(told)} == {completed},
            within=PATIENCE,
        )

        # Both alerts clear in their time: ten minutes, which are over here.
        ask(
            "UPDATE sync_workers SET last_heartbeat = now() - interval '11 minutes'"
            " WHERE worker_status = 'dead' RETURNING 1"
        )
        eventually(lambda: not metrics.query(WORKER_DIED), within=PATIENCE)
        processes = psutil.Process(everybody.pid).children(recursive=True)

    assert everybody.code == 128 + signal.SIGTERM
    assert not [one for one in processes if one.is_running() and one.status() != "zombie"]
    assert not active(ask)  # each gave back what it held
    assert ask("SELECT count(*) FROM sync_workers WHERE worker_status = 'dead'")[0][0] == 2


def test_settings_that_cannot_be_end_it(program: Program, tmp_path: Path) -> None:
    with honcho("coordinator", environ=program.environ, directory=tmp_path) as coordinator:
        eventually(lambda: not coordinator.is_running, within=PATIENCE)
    assert coordinator.code == 2
    assert coordinator.output().count("Set SYNC_SOURCE_URL and SYNC_TARGET_URL") == 1


def test_a_command_that_is_not_there_ends_it(tmp_path: Path) -> None:
    script = ROOT / "deploy" / "keep-running.sh"
    done = subprocess.run(["sh", script, "no-such-command"], cwd=tmp_path, timeout=PATIENCE)
    assert done.returncode == 127
