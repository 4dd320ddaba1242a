"""What a process tells of itself; and what is left of that when it is killed."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest

from tasks.database import Database
from tasks.worker import DEFAULT_QUEUE
from tasks.workers import live_workers
from tests.e2e.conftest import Program, Side, fill
from tests.eventually import eventually
from tests.ports import free_port
from tests.web.conftest import TOKEN

DONE = r'^dramatiq_messages_total\{actor_name="sync_chunk",queue_name="sync"\} (\S+)$'

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(program: Program) -> Iterator[Start]:
    """Starts commands, and ends them."""
    with contextlib.ExitStack() as stack:

        def started(*arguments: str, **environ: str) -> subprocess.Popen[str]:
            process = stack.enter_context(program.start(*arguments, **environ))
            stack.callback(process.kill)
            return process

        yield started


def ask(port: int, path: str = "/metrics", **headers: str) -> httpx.Response | None:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", headers=headers, timeout=5)
    except httpx.TransportError:
        return None


def told_by(ports: list[int]) -> dict[int, str]:
    """The metrics of the processes that answer, by port."""
    answers = {port: ask(port) for port in ports}
    return {port: answer.text for port, answer in answers.items() if answer is not None}


def done(text: str) -> float:
    found = re.search(DONE, text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_killed_worker_leaves_no_ghost(
    start: Start, program: Program, sides: tuple[Side, Side]
) -> None:
    source, target = sides
    fill(source.client, "docs", 200)
    first = free_port(beside=(1,))
    ports = [first, first + 1]
    workers = []
    for count in (1, 2):
        workers.append(start("worker", SYNC_METRICS_PORT=str(first), SYNC_WORKER_THREADS="1"))
        eventually(lambda count=count: len(told_by(ports)) == count, within=60)  # type: ignore[misc]
    arguments = ("sync", source.url, target.url, "--workers", "0", "--chunk-size", "10")
    assert program(*arguments).code == 0
    told = told_by(ports)
    assert sum(done(text) for text in told.values()) == 20
    assert all("dramatiq_message_duration_milliseconds_bucket" in text for text in told.values())
    assert all("process_resident_memory_bytes" in text for text in told.values())
    # What the database knows is the coordinator's to tell.
    assert not any("chroma_sync_" in text for text in told.values())
    workers[0].send_signal(signal.SIGKILL)
    workers[0].wait()
    left = told_by(ports)
    assert set(left) == {first + 1}
    assert done(left[first + 1]) == done(told[first + 1])


def test_a_worker_tells_nothing_unless_it_is_asked_to(start: Start, database: Database) -> None:
    worker = start("worker", PORT=str(free_port()))
    eventually(lambda: live_workers(database, DEFAULT_QUEUE), within=60)
    sockets = psutil.Process(worker.pid).net_connections()
    assert not [one for one in sockets if one.status == psutil.CONN_LISTEN]


def test_a_coordinator_tells_of_the_worker_inside_it(
    start: Start, sides: tuple[Side, Side]
) -> None:
    source, target = sides
    fill(source.client, "docs", 100)
    port = free_port()
    start(
        "coordinator",
        SYNC_SOURCE_URL=source.url,
        SYNC_TARGET_URL=target.url,
        SYNC_CHUNK_SIZE="10",
        SYNC_WEB_PORT=str(port),
    )
    eventually(lambda: (answer := ask(port)) and done(answer.text) >= 10, within=60)
    answer = ask(port)
    assert answer is not None
    assert 'chroma_sync_chunks_completed_total{kind="sync"} 10.0' in answer.text
    assert "chroma_sync_is_leader 1.0" in answer.text


def test_a_page_for_all_the_world_without_a_token_is_refused(program: Program) -> None:
    program.environ |= {
        "SYNC_SOURCE_URL": "http://127.0.0.1:9",
        "SYNC_TARGET_URL": "http://127.0.0.1:8",
    }
    for finished in (
        program("coordinator", PORT="5000"),
        program("run", SYNC_WEB_HOST="0.0.0.0"),
        program("worker", SYNC_WEB_HOST="0.0.0.0", SYNC_METRICS_PORT="9200"),
    ):
        assert finished.code == 2
        assert "SYNC_API_TOKEN is not set" in finished.error_line


def test_it_stops_in_time_while_somebody_looks(start: Start, sides: tuple[Side, Side]) -> None:
    port = free_port()
    coordinator = start(
        "coordinator",
        SYNC_SOURCE_URL=sides[0].url,
        SYNC_TARGET_URL=sides[1].url,
        SYNC_WEB_PORT=str(port),
        SYNC_API_TOKEN=TOKEN,
    )
    eventually(lambda: ask(port, "/healthz"), within=60)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:  # keeps its connection
        client.get("/api/v1/overview")
        coordinator.terminate()
        assert coordinator.wait(30) == 0
    out, err = coordinator.communicate()
    assert f"http://127.0.0.1:{port}/" in out
    assert "Traceback" not in err
    assert TOKEN not in out + err
