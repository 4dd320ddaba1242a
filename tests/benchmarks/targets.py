"""`make bench-targets`: copies to one target server, and to two at once.

    python -m tests.benchmarks.targets [--size DIMENSION:RECORDS] [--workers N] [--rounds N]

Two servers are two machines, as a rule, and here they are one. So all is measured twice: with every
process on every core, where the servers take the cores from each other; and, on four cores or more,
with a core for each target server, and what is left for all others. Beside our copies are the
servers themselves: each gets prepared batches from one client, and nothing is read.

The workers live all the time, and are as many for one target as for two. Each figure is the median
of its rounds, every other of which goes in reverse.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.embedded import embedded_postgres
from tasks.stores.server import ChromaServer
from tests.benchmarks import raw
from tests.benchmarks.common import (
    dimension_and_records,
    environment,
    start_command,
    workers,
    write_results,
)
from tests.benchmarks.corpus import Records, collection_of, new_database

SIZE = (384, 30_000)
WORKERS = 2
ROUNDS = 2
ASKED = 1.7
APART_CORES = 4
RESULTS = Path("build/bench-targets.json")
SCENES = {"shared": "all on all cores", "apart": "a core for each target"}
CONTENDERS = {"raw": "raw adds", "ours": "sync"}


class Copies:
    """The measurements of one scene: a source with records, and two targets."""

    def __init__(
        self, source: str, targets: Sequence[str], environ: dict[str, str], records: Records
    ) -> None:
        self._targets = targets
        self._environ = environ
        self._bodies = raw.write_bodies(records)
        self._size = len(records.ids)
        self._source = new_database(source, "source")
        raw.write(self._source, self._bodies, verb="add")
        self._seconds: dict[tuple[str, int], list[float]] = defaultdict(list)

    def measure(self, rounds: int) -> dict[str, dict[str, float]]:
        """Records a second, by contender, to one target and to two."""
        turns: list[tuple[str, int, Callable[[Sequence[str]], None]]] = [
            ("raw", 1, self._write_raw),
            ("raw", 2, self._write_raw),
            ("ours", 1, self._sync),
            ("ours", 2, self._sync),
        ]
        for number in range(rounds):
            for contender, count, copy in turns[:: -1 if number % 2 else 1]:
                name = f"{contender}-{count}-{number}"
                targets = [new_database(target, name) for target in self._targets[:count]]
                began = time.monotonic()
                copy(targets)
                self._seconds[contender, count].append(time.monotonic() - began)
                self._check(targets)
        return {contender: self._figures(contender) for contender in CONTENDERS}

    def _figures(self, contender: str) -> dict[str, float]:
        one, two = (
            count * self._size / statistics.median(self._seconds[contender, count])
            for count in (1, 2)
        )
        return {"one_per_s": round(one), "two_per_s": round(two), "ratio": round(two / one, 2)}

    def _write_raw(self, targets: Sequence[str]) -> None:
        with ThreadPoolExecutor(len(targets)) as executor:
            writing = [
                executor.submit(raw.write, target, self._bodies, verb="add") for target in targets
            ]
            for one in writing:
                one.result()

    def _sync(self, targets: Sequence[str]) -> None:
        copies = [start_command(self._environ, "sync", self._source, target) for target in targets]
        codes = [copy.wait() for copy in copies]
        if any(codes):
            raise RuntimeError("a copy failed")

    def _check(self, targets: Sequence[str]) -> None:
        for target in targets:
            found = collection_of(target).count()
            if found != self._size:
                raise RuntimeError(f"{target}: {found:,} records of {self._size:,}")


@contextlib.contextmanager
def scene(directory: Path, records: Records, count: int, *, apart: bool) -> Iterator[Copies]:
    """Start the servers, Postgres and so many workers, and stop them at the end."""
    rest, *own = _cores(apart)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_on(rest))
        postgres = stack.enter_context(embedded_postgres(directory))
        endpoints = []
        for name, cores in zip(("source", "target-1", "target-2"), (rest, *own), strict=True):
            (directory / name).mkdir()
            with _on(cores):
                server = stack.enter_context(ChromaServer(directory / name))
            endpoints.append(server.endpoint)
        environ = environment(postgres) | {"SYNC_LOG_LEVEL": "warning"}
        stack.enter_context(workers(environ, directory, count))
        source, *targets = endpoints
        yield Copies(source, targets, environ, records)


def _cores(apart: bool) -> list[set[int]]:
    """For everything but the targets, and for each target; nothing where it is all one."""
    if not apart:
        return [set()] * 3
    *rest, one, other = sorted(os.sched_getaffinity(0))
    return [set(rest), {one}, {other}]


@contextlib.contextmanager
def _on(cores: set[int]) -> Iterator[None]:
    """What is started in here runs on these cores; wherever it likes if none are given."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def show(results: dict[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("records/s")
    for column in ("", "to one target", "to two", "ratio", "asked"):
        table.add_column(column, justify="right" if column else "left")
    for name, told in SCENES.items():
        for contender, figures in results.get(name, {}).items():
            judged = name == "apart" and contender == "ours"
            ratio = f"{figures['ratio']:.2f}"
            table.add_row(
                told,
                CONTENDERS[contender],
                f"{figures['one_per_s']:,}",
                f"{figures['two_per_s']:,}",
                f"[red]{ratio} missed[/]" if judged and figures["ratio"] < ASKED else ratio,
                f"{ASKED:g}" if judged else "",
            )
    console.print(table)
    if "apart" not in results:
        console.print(f"a core for each target: not measured, it takes {APART_CORES} cores")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-targets", description=__doc__)
    parser.add_argument(
        "--size", type=dimension_and_records, default=SIZE, metavar="DIMENSION:RECORDS"
    )
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped
    console = Console(highlight=False)
    dimension, size = arguments.size
    records = Records.make(list(range(size)), dimension)
    results: dict[str, Any] = {}
    for name, told in SCENES.items():
        apart = name == "apart"
        if apart and not (sys.platform == "linux" and len(os.sched_getaffinity(0)) >= APART_CORES):
            continue
        console.print(told, style="dim")
        with (
            tempfile.TemporaryDirectory(prefix="bench-targets-") as directory,
            scene(Path(directory), records, arguments.workers, apart=apart) as copies,
        ):
            results[name] = copies.measure(arguments.rounds)
    show(results, console)
    write_results(
        RESULTS,
        {"cores": os.cpu_count(), "dimension": dimension, "records": size, **results},
        console,
    )


if __name__ == "__main__":
    main()
