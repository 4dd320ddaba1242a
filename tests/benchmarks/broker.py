"""`make bench-broker`: stock dramatiq-pg and our broker, in one run, on one Postgres.

Each contender has a database of its own on that server, with Postgres's default settings, and works
in processes of 8 threads. Rates are the median of three rounds, taken in turns.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dramatiq
import dramatiq_pg
import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from tasks.broker import PostgresBroker
from tasks.database import Database
from tasks.embedded import embedded_postgres
from tasks.schema import migrate
from tests.benchmarks.broker_process import declare_actors, stock_broker
from tests.benchmarks.common import write_results

ROUNDS = 3
NOOPS = 5000  # stock stops for good at a backlog of about 12,780
PAUSES = {"stock": 150, "ours": 600}  # of 50 ms
SENDS = {"stock": 3000, "ours": 50_000}
BACKLOG = 50_000
PATIENCE = 120.0
RESULTS = Path("build/bench-broker.json")


class Contender:
    """One of the two brokers, on a database of its own."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        if kind == "stock":
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(dramatiq_pg.generate_init_sql().encode())
            self.broker: dramatiq.Broker = stock_broker(url)
        else:
            self.database = Database(url)
            self.database.open()
            migrate(self.database)
            self.broker = PostgresBroker(self.database)
        declare_actors(self.broker)

    def fill(self, actor: str, count: int, *arguments: Any) -> float:
        """Enqueue so many messages, the fastest way there is; returns the seconds it took."""
        messages = [self.broker.actors[actor].message(*arguments) for _ in range(count)]
        began = time.monotonic()
        if isinstance(self.broker, PostgresBroker):
            with self.database.transaction() as connection:
                self.broker.enqueue_many(messages, connection)
        else:
            for message in messages:
                self.broker.enqueue(message)
        return time.monotonic() - began

    def is_drained(self, connection: psycopg.Connection[Any]) -> bool:
        """Asked by index, so that the asking costs the contenders nothing."""
        row = connection.execute(
            "SELECT EXISTS (SELECT FROM dramatiq.queue WHERE state = 'queued')"
            " OR EXISTS (SELECT FROM dramatiq.queue WHERE state = 'consumed')"
        ).fetchone()
        return row == (False,)

    @contextlib.contextmanager
    def process(self, threads: int = 8) -> Iterator[Process]:
        process = Process(self.kind, self.url, threads)
        try:
            yield process
        finally:
            process.end()

    def empty(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("TRUNCATE dramatiq.queue")
            connection.execute("VACUUM ANALYZE dramatiq.queue")


class Process:
    """A worker process, and the lines that it writes."""

    def __init__(self, kind: str, url: str, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.broker_process", kind, url, str(threads)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.pid = self._process.pid
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        assert self.line() == "ready"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())

    def line(self, timeout: float = 60) -> str:
        """The next line. Raises `queue.Empty` if none comes in time."""
        return self._lines.get(timeout=timeout)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def drain_rate(contender: Contender, actor: str, count: int, *arguments: Any) -> float:
    """Messages a second that one process of 8 threads works off a backlog."""
    contender.empty()
    contender.fill(actor, count, *arguments)
    with (
        psycopg.connect(contender.url, autocommit=True) as connection,
        contender.process(),
    ):
        row = connection.execute(
            "SELECT count(*) FROM dramatiq.queue WHERE state IN ('queued', 'consumed')"
        ).fetchone()
        assert row is not None
        began = time.monotonic()
        _until(lambda: contender.is_drained(connection))
        return float(row[0] / (time.monotonic() - began))


def backlog(contender: Contender) -> dict[str, Any]:
    """Drain 50,000 messages; watch advisory locks, and the worker's memory."""
    contender.empty()
    contender.fill("noop", BACKLOG)
    locks, memory = 0, []
    with (
        psycopg.connect(contender.url, autocommit=True) as connection,
        contender.process() as process,
    ):
        watched = psutil.Process(process.pid)
        deadline = time.monotonic() + PATIENCE
        while not contender.is_drained(connection) and time.monotonic() < deadline:
            row = connection.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            ).fetchone()
            assert row is not None
            locks = max(locks, int(row[0]))
            memory.append(watched.memory_info().rss / 2**20)
            time.sleep(0.2)
        return {
            "drained": contender.is_drained(connection),
            "max_advisory_locks": locks,
            "memory_mb_first": round(memory[0], 1),
            "memory_mb_last": round(memory[-1], 1),
        }


def recovery(contender: Contender, number: int) -> float:
    """Seconds from a signal to a worker until all it held is begun by another."""
    contender.empty()
    held = 4
    with contender.process(threads=held) as victim:
        contender.fill("mark", held, "victim", 3_000 if number == signal.SIGTERM else 60_000)
        for _ in range(held):
            victim.line()
        if number == signal.SIGTERM:
            # What is begun is finished; what is prefetched is handed back.
            contender.fill("mark", held, "prefetched", 0)
            with psycopg.connect(contender.url, autocommit=True) as connection:
                _until(lambda: _consumed(connection) == 2 * held)
        with contender.process(threads=held) as heir:
            sent = time.time()
            victim.signal(number)
            lines = [heir.line(timeout=PATIENCE) for _ in range(held)]
    return float(max(float(line.split()[1]) for line in lines)) - sent


def _consumed(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(
        "SELECT count(*) FROM dramatiq.queue WHERE state = 'consumed'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def _until(probe: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not probe():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def measure(contenders: dict[str, Contender], console: Console) -> dict[str, Any]:
    """All figures, as build/bench-broker.json has them."""
    rates: dict[str, dict[str, list[float]]] = {
        name: {"stock": [], "ours": []} for name in ("noop_per_s", "sleep50_per_s", "enqueue_per_s")
    }
    for number in range(ROUNDS):
        for kind, contender in contenders.items():
            console.print(f"round {number + 1} of {ROUNDS}: {kind}", style="dim")
            noop = drain_rate(contender, "noop", NOOPS)
            pause = drain_rate(contender, "pause", PAUSES[kind], 50)
            contender.empty()
            enqueue = SENDS[kind] / contender.fill("noop", SENDS[kind])
            contender.empty()
            for name, value in zip(rates, (noop, pause, enqueue), strict=True):
                rates[name][kind].append(value)
    ours = contenders["ours"]
    return {
        name: {kind: round(statistics.median(values), 1) for kind, values in by_kind.items()}
        for name, by_kind in rates.items()
    } | {
        "backlog_50k": backlog(ours),
        "sigkill_recovery_s": round(recovery(ours, signal.SIGKILL), 2),
        "sigterm_handback_s": round(recovery(ours, signal.SIGTERM), 2),
    }


def show(results: dict[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("what", "stock", "ours", "ratio", "asked"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = [
        ("no-op messages, 8 threads (/s)", "noop_per_s", "3 times stock"),
        ("50 ms tasks, 8 threads (/s)", "sleep50_per_s", "150"),
        ("bulk enqueue (/s)", "enqueue_per_s", "30,000"),
    ]
    for what, key, asked in rows:
        stock, mine = results[key]["stock"], results[key]["ours"]
        table.add_row(what, f"{stock:,.0f}", f"{mine:,.0f}", f"{mine / stock:.1f}", asked)
    backlog = results["backlog_50k"]
    drained = (
        f"{'drained' if backlog['drained'] else 'stuck'}, {backlog['max_advisory_locks']} locks"
    )
    table.add_row("50,000 in one backlog", "stops", drained, "", "drains")
    table.add_row("SIGKILL to others' start (s)", "", f"{results['sigkill_recovery_s']}", "", "10")
    table.add_row("SIGTERM to others' start (s)", "", f"{results['sigterm_handback_s']}", "", "2")
    console.print(table)


def main() -> None:
    console = Console(highlight=False)
    with (
        tempfile.TemporaryDirectory(prefix="bench-broker-") as directory,
        embedded_postgres(Path(directory)) as url,
    ):
        contenders = {}
        for kind in ("stock", "ours"):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {kind}".encode())
            contenders[kind] = Contender(kind, url.replace("/postgres?", f"/{kind}?"))
        results = measure(contenders, console)
    show(results, console)
    write_results(RESULTS, results, console)


if __name__ == "__main__":
    main()
