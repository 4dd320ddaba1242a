"""`make bench`: our command, a plain script and the raw servers, in one run on the same servers.

    python -m tests.benchmarks.sync [--size DIMENSION:RECORDS ...] [--rounds N] [-- OPTION ...]

For each dimension there is one source and one target server, both new; every contender has a
database of its own on that target. A target slows down as it grows, so the second round goes in
reverse, and so on; each figure is the median of its rounds. "Ours" and the plain script are
processes, measured from their start to their end, as a user sees them; Postgres runs already. Only
against the raw ceilings does it count from the plan to the last result that was recorded, by
Postgres's clock, as the ceilings start nothing either.

Ours works with as many worker processes as leave the servers a core (options after `--` take the
place of that), as the raw reads take the number of threads that suits the machine best. A command
needs about a second to start and to end, so collections that are read in two are no measure of it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from rich.console import Console
from rich.table import Table

from tasks.embedded import embedded_postgres
from tasks.stores.server import ChromaServer
from tests.benchmarks import raw
from tests.benchmarks.common import PROGRAM, dimension_and_records, environment, write_results
from tests.benchmarks.corpus import BATCH, Records, collection_of, new_database

SIZES = {384: 100_000, 1536: 30_000}
OPTIONS = ["--workers", str(max(2, (os.cpu_count() or 2) - 1))]
ROUNDS = 2
QUICK_ROUNDS = 5  # of what takes a second or two
READ_THREADS = (2, 3, 4, 6, 8)  # over both servers
CHECKED = 100  # records that are compared one by one after each copy
RESULTS = Path("build/bench.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table: two rates, of which the first should be so many times the second."""

    key: str
    what: str
    ours: str
    rival: str
    asked: float


LINES = (
    Line(key="copy", what="copy, to ceiling", ours="copy phase", rival="ceiling", asked=1),
    Line(key="proven", what="proven copy, to script", ours="copy", rival="script copy", asked=1.15),
    Line(key="again", what="unchanged, to script", ours="again", rival="script again", asked=20),
    Line(
        key="changed", what="2 % new, to script", ours="changed", rival="script changed", asked=12
    ),
    Line(
        key="verify", what="verify, to raw reads", ours="verify phase", rival="raw reads", asked=0.8
    ),
)


@dataclass(slots=True)
class Seconds:
    """What was measured, by name."""

    measured: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, seconds: float) -> None:
        self.measured[name].append(seconds)

    def median(self, name: str) -> float:
        return statistics.median(self.measured[name])


class Stage:
    """Two Chroma servers and a Postgres, and our command on them."""

    def __init__(self, source: str, target: str, postgres: str, options: Sequence[str]) -> None:
        self.source = source
        self.target = target
        self._postgres = postgres
        self._options = options

    def ours(self, command: str, source: str, target: str) -> float:
        """Run our command until it has proven what it did; returns the seconds it took."""
        began = time.monotonic()
        subprocess.run(
            [PROGRAM, command, source, target, "--json", *self._options],
            env=environment(self._postgres),
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.monotonic() - began

    def phase(self, kind: str) -> float:
        """Seconds of the last run of this kind, from its plan to its last result."""
        with psycopg.connect(self._postgres) as connection:
            row = connection.execute(
                "SELECT extract(epoch FROM max(r.recorded_at) - s.planned_at)"
                "  FROM sync_runs s JOIN sync_results r ON r.run_id = s.id"
                " WHERE s.kind = %s AND s.parent_run_id IS NULL"
                " GROUP BY s.id ORDER BY s.created_at DESC LIMIT 1",
                [kind],
            ).fetchone()
        assert row is not None
        return float(row[0])


def plain(source: str, target: str) -> float:
    """Run the plain script; returns the seconds it took."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "tests.benchmarks.plain", source, target], check=True)
    return time.monotonic() - began


class Bench:
    """All lines for vectors of one dimension."""

    def __init__(
        self, stage: Stage, dimension: int, size: int, rounds: int, console: Console
    ) -> None:
        self._stage = stage
        self._dimension = dimension
        self._size = size
        self._rounds = rounds
        self._console = console
        self._seconds = Seconds()
        self._source = new_database(stage.source, f"source-{dimension}")
        self._targets: list[tuple[str, str]] = []  # of ours and of the plain script, by round
        self._numbers = list(range(size))

    def measure(self) -> dict[str, Any]:
        """The figures of build/bench.json for this dimension."""
        self._say("filling the source")
        records = Records.make(self._numbers, self._dimension)
        bodies = raw.write_bodies(records)
        raw.write(self._source, bodies, verb="add")
        for number in range(self._rounds):
            self._copy(number, bodies)
        self._again()
        for number in range(self._rounds):
            self._change(number)
        self._verify(self._targets[-1][0])
        return self._figures()

    def _say(self, what: str) -> None:
        self._console.print(f"{self._dimension} dimensions: {what}", style="dim")

    def _copy(self, number: int, bodies: Sequence[bytes]) -> None:
        name = f"{self._dimension}-{number}"
        self._say(f"full copy, round {number + 1} of {self._rounds}")
        ceiling, ours, other = (
            new_database(self._stage.target, f"{kind}-{name}")
            for kind in ("ceiling", "ours", "plain")
        )
        contenders: list[Callable[[], None]] = [
            lambda: self._seconds.add("ceiling", raw.write(ceiling, bodies)),
            lambda: self._copy_ours(ours),
            lambda: self._seconds.add("script copy", plain(self._source, other)),
        ]
        for contender in contenders[:: -1 if number % 2 else 1]:
            contender()
        for target in (ceiling, ours, other):
            check(self._source, target)
        self._targets.append((ours, other))

    def _copy_ours(self, target: str) -> None:
        self._seconds.add("copy", self._stage.ours("sync", self._source, target))
        self._seconds.add("copy phase", self._stage.phase("sync"))

    def _again(self) -> None:
        self._say("again, unchanged")
        for number in range(QUICK_ROUNDS):
            ours, other = self._targets[number % len(self._targets)]
            self._seconds.add("again", self._stage.ours("sync", self._source, ours))
            if number == 0:
                self._seconds.add("script again", plain(self._source, other))

    def _change(self, number: int) -> None:
        self._say(f"again, changed, round {number + 1} of {self._rounds}")
        change(self._source, self._numbers, self._dimension, version=number + 1)
        # Always the same ones: others would lack the changes of the rounds before as well.
        ours, other = self._targets[-1]
        self._seconds.add("changed", self._stage.ours("sync", self._source, ours))
        self._seconds.add("script changed", plain(self._source, other))
        check(self._source, ours)

    def _verify(self, target: str) -> None:
        self._say("verify")
        ids = [Records.make([number], 1).ids[0] for number in self._numbers]
        for threads in READ_THREADS:
            self._read_raw(target, ids, threads)
        best = min(READ_THREADS, key=lambda threads: self._seconds.median(f"raw {threads}"))
        for _ in range(QUICK_ROUNDS):
            self._seconds.add("raw reads", self._read_raw(target, ids, best))
            self._seconds.add("verify", self._stage.ours("verify", self._source, target))
            self._seconds.add("verify phase", self._stage.phase("verify"))

    def _read_raw(self, target: str, ids: Sequence[str], threads: int) -> float:
        bodies = raw.read_bodies(ids, BATCH)
        seconds = raw.read([self._source, target], bodies, threads=threads)
        self._seconds.add(f"raw {threads}", seconds)
        return seconds

    def _figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = {"records": self._size}
        for line in LINES:
            ours, rival = self._seconds.median(line.ours), self._seconds.median(line.rival)
            figures[line.key] = {
                "ours_per_s": round(self._size / ours),
                "rival_per_s": round(self._size / rival),
                "ratio": round(rival / ours, 2),
                "asked": line.asked,
                "reached": rival / ours >= line.asked,
            }
        measured = {
            name: [round(one, 3) for one in values]
            for name, values in self._seconds.measured.items()
        }
        return figures | {"seconds": measured}


def change(url: str, numbers: list[int], dimension: int, *, version: int) -> None:
    """Change 1 % of the records, add 0.5 % and delete 0.5 %, at random; updates `numbers`."""
    rng = np.random.default_rng(version)
    count = max(1, len(numbers) // 200)
    picked = rng.choice(len(numbers), 3 * count, replace=False)
    gone = {numbers[position] for position in picked[:count]}
    changed = [numbers[position] for position in picked[count:]]
    new = list(range(max(numbers) + 1, max(numbers) + 1 + count))
    collection = collection_of(url)
    for records in (Records.make(each, dimension, version=version) for each in (changed, new)):
        collection.upsert(
            ids=records.ids,
            embeddings=records.embeddings,
            documents=records.documents,
            metadatas=records.metadatas,  # type: ignore[arg-type]
        )
    collection.delete(ids=Records.make(sorted(gone), 1).ids)
    numbers[:] = [number for number in numbers if number not in gone] + new


def check(source_url: str, target_url: str) -> None:
    """Compare with Chroma's own client: the count, and records that are picked at random."""
    source, target = collection_of(source_url), collection_of(target_url)
    if source.count() != target.count():
        raise RuntimeError(f"{target_url}: {target.count()} records of {source.count()}")
    ids = source.get(include=[])["ids"]
    picked = np.random.default_rng(len(ids)).choice(ids, min(CHECKED, len(ids)), replace=False)
    one, other = (
        {
            id_: (vector.tobytes(), document, metadata)
            for id_, vector, document, metadata in zip(
                found["ids"],
                found["embeddings"],  # type: ignore[arg-type]
                found["documents"] or [],
                found["metadatas"] or [],
                strict=True,
            )
        }
        for found in (
            collection.get(list(picked), include=["embeddings", "documents", "metadatas"])
            for collection in (source, target)
        )
    )
    if one != other:
        raise RuntimeError(f"{target_url}: records differ from the source's")


def show(results: dict[int, dict[str, Any]], console: Console) -> None:
    """The table, with what was not reached in red."""
    table = Table(box=None, pad_edge=False)
    for column in ("what (records/s)", "dimensions", "ours", "theirs", "ratio", "asked"):
        table.add_column(column, justify="left" if column.startswith("what") else "right")
    for line in LINES:
        for dimension, figures in results.items():
            one = figures[line.key]
            ratio = f"{one['ratio']:.2f}"
            table.add_row(
                line.what,
                str(dimension),
                f"{one['ours_per_s']:,}",
                f"{one['rival_per_s']:,}",
                ratio if one["reached"] else f"[red]{ratio} missed[/]",
                f"{line.asked:g}",
            )
    console.print(table)


@contextlib.contextmanager
def stage(options: Sequence[str]) -> Iterator[Stage]:
    """Start the servers and Postgres, and stop them at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-sync-") as directory,
        embedded_postgres(Path(directory)) as postgres,
        contextlib.ExitStack() as servers,
    ):
        source, target = Path(directory, "source"), Path(directory, "target")
        for path in (source, target):
            path.mkdir()
        yield Stage(
            servers.enter_context(ChromaServer(source)).endpoint,
            servers.enter_context(ChromaServer(target)).endpoint,
            postgres,
            options,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--size", type=dimension_and_records, action="append", metavar="DIMENSION:RECORDS"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("options", nargs="*", help="for our command, after --")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped
    console = Console(highlight=False)
    results = {}
    for dimension, size in dict(arguments.size or SIZES.items()).items():
        with stage(arguments.options or OPTIONS) as servers:
            bench = Bench(servers, dimension, size, arguments.rounds, console)
            results[dimension] = bench.measure()
    show(results, console)
    write_results(RESULTS, {"cores": os.cpu_count(), "sizes": results}, console)


if __name__ == "__main__":
    main()
