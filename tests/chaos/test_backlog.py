"""A backlog that fills the lock table of a default Postgres where messages are held by locks."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import dramatiq
import psutil
import psycopg
import pytest

from tasks.broker import enqueue_many
from tasks.database import Database
from tests.chaos.conftest import Add
from tests.chaos.noop_worker import ACTOR
from tests.chaos.processes import Process
from tests.chaos.recovery import Recovery

QUEUE = "backlog"
MEGABYTE = 2**20


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(5_000, id="short"),
        pytest.param(50_000, id="long", marks=pytest.mark.chaos),
    ],
)
def test_a_backlog_drains(
    database: Database,
    database_url: str,
    tmp_path: Path,
    form: str,
    add: Add,
    count: int,
) -> None:
    with database.transaction() as connection:
        message = dramatiq.Message[None](
            queue_name=QUEUE, actor_name=ACTOR, args=(), kwargs={}, options={}
        )
        enqueue_many((message.copy(message_id=_id(n)) for n in range(count)), connection)
    worker = Process(
        [sys.executable, "-m", "tests.chaos.noop_worker", database_url, QUEUE],
        environ=os.environ,
        directory=tmp_path,
        name="worker",
    )
    try:
        began, locks, memory = 0.0, 0, []
        with psycopg.connect(database_url, autocommit=True) as watcher:
            while True:
                rows = watcher.execute(
                    "SELECT count(*) FILTER (WHERE state = 'done'),"
                    " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')"
                    " FROM dramatiq.queue"
                ).fetchall()
                done, held = int(rows[0][0]), int(rows[0][1])
                assert worker.is_running, worker.log_end()
                if done:
                    began = began or time.monotonic()
                    locks = max(locks, held)
                    memory.append(psutil.Process(worker.pid).memory_info().rss / MEGABYTE)
                assert time.monotonic() - (began or time.monotonic()) < 120, f"{done} done"
                if done == count:
                    break
                time.sleep(0.1)
        seconds = time.monotonic() - began
        worker.terminate()
        assert worker.wait(within=10) == 0, worker.log_end()
    finally:
        if worker.is_running:
            worker.kill()
    assert locks == 0
    assert max(memory) - memory[0] < 60
    add(
        Recovery(
            scenario=f"a backlog of {count:,} messages",
            form=form,
            run_seconds=seconds,
            blows=0,
            notes={
                "advisory_locks": locks,
                "memory_mb": f"{memory[0]:.0f} to {max(memory):.0f}",
                "per_s": round(count / max(seconds, 0.1)),
            },
        )
    )


def _id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"
