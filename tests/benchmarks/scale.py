"""`make bench-scale`: what a chunk costs in a collection of ten thousand records, and of a million.

    python -m tests.benchmarks.scale [--sizes N,N,N]

Real servers, but small records (8 dimensions, no document), as a million of ordinary ones would
keep a server busy for half an hour on either side. Two worker processes live through all sizes, so
what a long life does to their memory shows.

Each size is a collection of its own: copied, then verified; a small one several times, and what is
shown is the median. Of each chunk:

    plan       to list both sides and to freeze the manifest, by the clock
    enqueue    to make the tasks and their messages, until the first is begun, by the clock
    work       of the copy, processor time of the workers, without what they need when idle; by the
               clock it is the server's, whose own time for the same records (`raw add`) is shown
    record     between a chunk's work and its result in the ledger, by the clock
    verify     to read both sides and compare, by the clock

The growth of a cost is that of the largest collection to the cheapest of the smaller ones.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from tasks.embedded import embedded_postgres
from tasks.stores.server import ChromaServer
from tests.benchmarks import raw
from tests.benchmarks.common import environment, start_command, workers, write_results
from tests.benchmarks.corpus import BATCH, collection_of, new_database

SIZES = (10_000, 100_000, 1_000_000)
DIMENSION = 8
WORKERS = 2
GROWTH = 1.15
MOST = {"coordinator": 200, "worker": 250}  # MB
MEMORY_EVERY = 0.1  # seconds between two looks; the kernel keeps the peaks
SENT = 50  # requests that are prepared at a time
ROUNDS, LONG = 5, 100_000  # rounds of a small collection; so many records are enough for one
IDLE_SECONDS = 10.0
RESULTS = Path("build/bench-scale.json")

COSTS = ("plan", "enqueue", "work", "record", "verify")
_TIMES = """
SELECT extract(epoch FROM s.planned_at - s.created_at)::float8,
       extract(epoch FROM min(t.first_started_at) - s.planned_at)::float8,
       avg(extract(epoch FROM t.completed_at - t.started_at)::float8 - r.seconds),
       avg(r.seconds), count(*)
  FROM sync_runs s
  JOIN sync_tasks t ON t.run_id = s.id
  JOIN sync_results r ON r.task_id = t.id
 WHERE s.kind = %s AND s.parent_run_id IS NULL
 GROUP BY s.id
 ORDER BY s.created_at DESC
 LIMIT 1
"""


@dataclass(slots=True)
class Memory:
    """The peaks of processes, in MB, by role."""

    peaks: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def watched(self, role: str, *pids: int) -> Iterator[None]:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(MEMORY_EVERY):
                for pid in pids:
                    self._look(role, pid)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _look(self, role: str, pid: int) -> None:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            peak = next(line for line in lines if line.startswith("VmHWM:"))
            self.peaks[role] = max(self.peaks.get(role, 0.0), int(peak.split()[1]) / 1000)


class Scale:
    """The scene: a source, a target, Postgres, and workers that live all the time."""

    def __init__(
        self, source: str, target: str, environ: Mapping[str, str], workers: list[int]
    ) -> None:
        self._source = source
        self._target = target
        self._environ = environ
        self._workers = workers
        self._idle = 0.0  # processor seconds a second
        self.memory = Memory()

    def measure(self, size: int) -> dict[str, float]:
        """The cost of a chunk, in milliseconds, in a collection of so many records."""
        source = new_database(self._source, f"source-{size}")
        raw_add = 1000 * fill(source, size)
        rounds = [
            self._round(source, new_database(self._target, f"target-{size}-{number}"), size)
            for number in range(max(1, min(ROUNDS, LONG // size)))
        ]
        medians = {cost: statistics.median(one[cost] for one in rounds) for cost in rounds[0]}
        return medians | {"raw add": raw_add}

    def _round(self, source: str, target: str, size: int) -> dict[str, float]:
        before, began = self._processor_seconds(), time.monotonic()
        self._run("sync", source, target)
        idle = self._idle * (time.monotonic() - began)
        processor = self._processor_seconds() - before - idle
        plan, enqueue, record, copy, chunks = self._times("sync")
        self._run("verify", source, target)
        *_, verify, _ = self._times("verify")
        found = collection_of(target).count()
        if found != size:
            raise RuntimeError(f"{target}: {found:,} records of {size:,}")
        return {
            "plan": 1000 * plan / chunks,
            "enqueue": 1000 * enqueue / chunks,
            "work": 1000 * processor / chunks,
            "record": 1000 * record,
            "verify": 1000 * verify,
            "copy, by the clock": 1000 * copy,
        }

    def look_at_idle_workers(self) -> None:
        """Note what the workers need when there is nothing to do."""
        before = self._processor_seconds()
        time.sleep(IDLE_SECONDS)
        self._idle = (self._processor_seconds() - before) / IDLE_SECONDS

    def _run(self, command: str, source: str, target: str) -> None:
        process = start_command(self._environ, command, source, target)
        with (
            self.memory.watched("coordinator", process.pid),
            self.memory.watched("worker", *self._workers),
        ):
            if process.wait():
                raise RuntimeError(f"{command} {source} {target} failed")

    def _processor_seconds(self) -> float:
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in self._workers)

    def _times(self, kind: str) -> tuple[float, float, float, float, int]:
        with psycopg.connect(self._environ["DATABASE_URL"]) as connection:
            row = connection.execute(_TIMES, [kind]).fetchone()
        assert row is not None
        return row


def fill(url: str, size: int) -> float:
    """Add so many small records; returns the seconds that 1000 took."""
    seconds = 0.0
    rng = np.random.default_rng(size)
    for first in range(0, size, SENT * BATCH):
        bodies = []
        for start in range(first, min(first + SENT * BATCH, size), BATCH):
            numbers = range(start, min(start + BATCH, size))
            bodies.append(
                raw.write_body(
                    ids=[f"record-{number:07}" for number in numbers],
                    embeddings=rng.standard_normal((len(numbers), DIMENSION), dtype=np.float32),
                    metadatas=[{"number": number} for number in numbers],
                )
            )
        seconds += raw.write(url, bodies, verb="add")
    return seconds / (size / BATCH)


def growth(costs: Mapping[int, Mapping[str, float]], cost: str) -> float:
    """Of the largest collection to the cheapest of the smaller ones."""
    *smaller, largest = sorted(costs)
    return costs[largest][cost] / min(costs[size][cost] for size in smaller)


def show(results: dict[str, Any], console: Console) -> None:
    sizes = list(results["costs"])
    table = Table(box=None, pad_edge=False)
    table.add_column("a chunk's (ms)")
    for size in sizes:
        table.add_column(f"of {size:,}", justify="right")
    table.add_column("growth", justify="right")
    for cost in results["costs"][sizes[0]]:
        grown = results["growth"][cost]
        told = f"{grown:.2f}"
        if cost in COSTS and grown > GROWTH:
            told = f"[red]{told} missed[/]"
        table.add_row(cost, *(f"{results['costs'][size][cost]:.2f}" for size in sizes), told)
    console.print(table)
    for role, most in MOST.items():
        peak = results["memory"][role]
        told = f"{peak:.0f} MB" if peak < most else f"[red]{peak:.0f} MB missed[/]"
        console.print(f"memory of a {role} at its peak: {told} (asked: under {most})")


@contextlib.contextmanager
def scene(directory: Path) -> Iterator[Scale]:
    """Start the servers, Postgres and the workers, and stop them at the end."""
    with (
        embedded_postgres(directory) as postgres,
        contextlib.ExitStack() as stack,
    ):
        for name in ("source", "target"):
            (directory / name).mkdir()
        source, target = (
            stack.enter_context(ChromaServer(directory / name)).endpoint
            for name in ("source", "target")
        )
        environ = environment(postgres) | {"SYNC_LOG_LEVEL": "warning"}
        pids = stack.enter_context(workers(environ, directory, WORKERS))
        yield Scale(source, target, environ, pids)


def _sizes(text: str) -> list[int]:
    return sorted(int(size) for size in text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-scale", description=__doc__)
    parser.add_argument("--sizes", type=_sizes, default=list(SIZES), metavar="N,N,...")
    arguments = parser.parse_args()
    if len(arguments.sizes) < 2:
        parser.error("give two sizes at least: a growth is asked for")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped
    console = Console(highlight=False)
    with (
        tempfile.TemporaryDirectory(prefix="bench-scale-") as directory,
        scene(Path(directory)) as scale,
    ):
        scale.look_at_idle_workers()
        costs = {}
        for size in arguments.sizes:
            console.print(f"{size:,} records of {DIMENSION} dimensions", style="dim")
            costs[size] = scale.measure(size)
    results = {
        "cores": os.cpu_count(),
        "dimension": DIMENSION,
        "costs": costs,
        "growth": {cost: growth(costs, cost) for cost in costs[arguments.sizes[0]]},
        "memory": scale.memory.peaks,
    }
    show(results, console)
    write_results(RESULTS, results, console)


if __name__ == "__main__":
    main()
