"""The Procfile under honcho, as it stands: a service that outlives its workers and its leader."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import psycopg
import pytest

from tasks.stores.server import _DIE_WITH_PARENT
from tests.chaos.processes import Process
from tests.deploy.conftest import ROOT
from tests.e2e.conftest import Program, Side, embedding_of, everything, fill, open_side
from tests.eventually import eventually

SCALE = "coordinator=2,worker=3"
COORDINATORS, WORKERS = 3, 3  # one of the coordinators is `web`
PATIENCE = 120.0  # seconds; honcho alone takes several to start so many processes
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


def leader(ask: Ask, *, after: int = 0) -> list[int]:
    """The term and the process of who leads, in a later term; nothing if nobody does."""
    rows = ask(
        "SELECT term, holder FROM sync_leases"
        " WHERE name = 'schedule' AND expires_at > now() AND term > %s",
        after,
    )
    return [rows[0][0], int(rows[0][1].split("-")[-2])] if rows else []


def pages(everybody: Process) -> set[str]:
    """Where the coordinators serve their page: each on the port that it was given."""

    def told() -> set[str]:
        found = set(re.findall(r"http://127\.0\.0\.1:\d+/", everybody.output()))
        return found if len(found) == COORDINATORS else set()

    return eventually(told, within=PATIENCE)


def ended_runs(ask: Ask) -> int:
    """How many runs have ended. While the source changes, none can find both sides alike."""
    ended = "SELECT count(*) FROM sync_runs WHERE parent_run_id IS NULL AND finished_at < now()"
    return int(ask(ended)[0][0])


def is_worker(pid: int) -> bool:
    return psutil.Process(pid).cmdline()[-1] == "worker"


def test_it_outlives_a_worker_and_the_leader(
    servers: tuple[str, str], program: Program, ask: Ask, tmp_path: Path
) -> None:
    source, target = (open_side(url, "procfile") for url in servers)
    fill(source.client, "docs", 1000)
    environ = program.environ | {
        "SYNC_SOURCE_URL": source.url,
        "SYNC_TARGET_URL": target.url,
        "SYNC_INTERVAL": "1",
        "SYNC_CHUNK_SIZE": "100",
        "PORT": str(random.randrange(20_000, 30_000, 500)),
    }
    with honcho("-c", SCALE, environ=environ, directory=tmp_path) as everybody:
        with changing(source, "docs"):

            def all_work() -> dict[int, str]:
                assert everybody.is_running, everybody.output()
                found = active(ask)  # the coordinators have a worker inside
                return found if len(found) == COORDINATORS + WORKERS else {}

            before = eventually(all_work, within=PATIENCE)
            for url in pages(everybody):
                with urlopen(f"{url}healthz", timeout=30) as answer:
                    assert answer.status == 200
            eventually(lambda: ended_runs(ask), within=PATIENCE)

            victim = next(pid for pid in before if is_worker(pid))
            os.kill(victim, signal.SIGKILL)
            eventually(
                lambda: ask(
                    "SELECT FROM sync_workers WHERE worker_id = %s AND worker_status = 'dead'",
                    before[victim],
                ),
                within=PATIENCE,
            )
            eventually(all_work, within=PATIENCE)

            term, pid = eventually(lambda: leader(ask), within=PATIENCE)
            os.kill(pid, signal.SIGKILL)
            _, successor = eventually(lambda: leader(ask, after=term), within=PATIENCE)
            assert successor != pid
            eventually(all_work, within=PATIENCE)
            so_far = ended_runs(ask)
            eventually(lambda: ended_runs(ask) > so_far, within=PATIENCE)

        # The source rests. A run that begins now finds both sides alike, and so do we.
        now = ask("SELECT now()")[0][0]
        whole = "SELECT FROM sync_runs WHERE parent_run_id IS NULL AND verified AND created_at > %s"
        eventually(lambda: ask(whole, now), within=PATIENCE)
        assert everything(source.client, "docs") == everything(target.client, "docs")
        newest = program("status", "--json")
        assert newest.code == 0, newest.err
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
