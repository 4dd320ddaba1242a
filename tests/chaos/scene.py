"""The scene of a scenario: two stores, a ledger, and real processes of ours at work between them.

What happened is asked of Postgres in plain SQL and of the stores with the chromadb client, never of
the code that is being tested.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.chaos.faulty_proxy import FaultyProxy
from tests.chaos.processes import Process
from tests.chaos.recovery import Blow, Recovery, longest_waits
from tests.e2e.conftest import Side, everything
from tests.eventually import eventually

Records = dict[str, tuple[Any, ...]]
Row = tuple[Any, ...]

COLLECTION = "docs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A source that is full, and what is in it as the chromadb client reads it."""

    side: Side
    records: Records


class Scene:
    """Starts workers and coordinators, watches them, and checks how it ended."""

    def __init__(
        self,
        *,
        source: Filled,
        target: Side,
        database_url: str,
        directory: Path,
        seed: int,
        settings: Mapping[str, str],
    ) -> None:
        self.source = source
        self.target = target
        self.database_url = database_url
        # Where the processes find the stores; a scenario may put a proxy in between.
        self.source_url = source.side.url
        self.target_url = target.url
        self.random = random.Random(seed)
        self.blows: list[Blow] = []
        self.workers: list[Process] = []
        self.processes: list[Process] = []
        self.directory = directory
        self._numbers = itertools.count(1)
        self._connection: psycopg.Connection[Row] | None = None
        self.ledger_url = database_url  # by which the scenario itself looks at the ledger
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONFAULTHANDLER": "1",
            "DATABASE_URL": database_url,
            **settings,
        }

    def put_before_target(self, proxy: FaultyProxy) -> None:
        """Let the processes of the scene reach the target through a proxy, to slow it at least."""
        self.target_url = self.target_url.replace(proxy.upstream, proxy.url)

    def put_before_source(self, proxy: FaultyProxy) -> None:
        self.source_url = self.source_url.replace(proxy.upstream, proxy.url)

    # Processes ----------------------------------------------------------------------------------

    def run(self, *arguments: str, name: str, **environ: str) -> Process:
        """A command of chroma-sync, as a process of its own."""
        process = Process(
            [sys.executable, "-m", "coordinator.cli", *arguments],
            environ=self.environ | environ,
            directory=self.directory,
            name=f"{name}-{next(self._numbers)}",
        )
        self.processes.append(process)
        return process

    def start_worker(self, **environ: str) -> Process:
        worker = self.run("worker", name="worker", **environ)
        self.workers.append(worker)
        return worker

    def start_workers(self, count: int, **environ: str) -> None:
        """Start workers, and wait until all have reported for work."""
        started = [self.start_worker(**environ) for _ in range(count)]
        pids = [worker.pid for worker in started]
        eventually(
            lambda: all(self.worker_ids(pid) for pid in pids) if self.has_ledger() else False,
            within=60,
        )

    def start_sync(self, *options: str) -> Process:
        """The coordinator of one sync; the work is done by the workers of the scene."""
        command = ("sync", self.source_url, self.target_url, "--workers", "0", "--json")
        return self.run(*command, *options, name="sync")

    def close(self) -> None:
        """End everything that still runs."""
        for process in self.processes:
            if process.is_running:
                process.kill()
        if self._connection is not None:
            self._connection.close()

    # What the ledger says -----------------------------------------------------------------------

    def ask(self, query: str, *arguments: object, within: float = 30.0) -> list[Row]:
        """Plain SQL; asked again while Postgres is away."""
        deadline = time.monotonic() + within
        while True:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = psycopg.connect(
                        self.ledger_url, autocommit=True, application_name="chaos"
                    )
                cursor = self._connection.execute(query.encode(), arguments)
                return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                if self._connection is not None:
                    self._connection.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def has_ledger(self) -> bool:
        return self.ask("SELECT to_regclass('sync_results')") != [(None,)]

    def results(self) -> int:
        """How many results are recorded, of any run."""
        if not self.has_ledger():
            return 0
        return int(self.ask("SELECT count(*) FROM sync_results")[0][0])

    def wait_for_results(self, more: int = 1, *, within: float = 60.0) -> None:
        """Wait until so many more results are there than now."""
        wanted = self.results() + more
        eventually(lambda: self.results() >= wanted, within=within)

    def worker_ids(self, pid: int) -> list[str]:
        return [
            str(row[0])
            for row in self.ask("SELECT worker_id FROM sync_workers WHERE pid = %s", pid)
        ]

    def held_tasks(self, pid: int) -> list[int]:
        """The tasks that a worker process is in the middle of."""
        return [
            int(row[0])
            for row in self.ask(
                "SELECT t.id FROM sync_tasks t JOIN sync_workers w USING (worker_id)"
                " WHERE w.pid = %s AND t.task_status = 'processing'",
                pid,
            )
        ]

    def unsettled_tasks(self) -> list[int]:
        """Tasks that are being worked on, or wait for a retry."""
        return [
            int(row[0])
            for row in self.ask(
                "SELECT id FROM sync_tasks WHERE task_status = 'processing'"
                " OR (task_status = 'pending' AND started_at IS NOT NULL)"
            )
        ]

    def completed_by(self, tasks: Sequence[int]) -> dict[int, str]:
        """Which worker completed each of these tasks, as far as they are completed."""
        rows = self.ask(
            "SELECT task_id, worker_id FROM sync_results WHERE task_id = ANY (%s)", list(tasks)
        )
        return {int(task): str(worker) for task, worker in rows}

    def has_left(self, tasks: Sequence[int], worker_ids: Sequence[str]) -> bool:
        """Whether each of these tasks is completed, or somebody else works on it."""
        ((left,),) = self.ask(
            "SELECT count(*) FROM sync_tasks WHERE id = ANY (%s) AND task_status <> 'completed'"
            " AND (task_status <> 'processing' OR worker_id = ANY (%s))",
            list(tasks),
            list(worker_ids),
        )
        return int(left) == 0

    def worker_at(self, port: int) -> Process:
        """The worker whose end of a connection has this port."""
        for worker in self.workers:
            if worker.is_running:
                connections = psutil.Process(worker.pid).net_connections(kind="tcp")
                if any(one.laddr.port == port for one in connections):
                    return worker
        raise AssertionError(f"no worker has a connection at port {port}")

    def freeze_busy_worker(self, *, holding: int = 1) -> tuple[Process, list[int]]:
        """Pause a worker in the middle of its work, with the tasks that it then holds."""
        while True:
            victim = eventually(self._busy_worker)
            assert victim is not None
            victim.pause()
            held = self.held_tasks(victim.pid)
            if len(held) >= holding:
                return victim, held
            victim.resume()  # it was just between two chunks

    def _busy_worker(self) -> Process | None:
        """One of the workers that are in the middle of a chunk just now; the seed says which."""
        # A chunk that has taken two workers with it is spared: a third would set it aside.
        rows = self.ask(
            "SELECT DISTINCT w.pid FROM sync_tasks t JOIN sync_workers w USING (worker_id)"
            " WHERE t.task_status = 'processing' AND w.worker_status = 'active'"
            " AND NOT EXISTS (SELECT FROM sync_tasks o WHERE o.worker_id = w.worker_id"
            "                  AND o.task_status = 'processing' AND o.lost_count > 1)"
        )
        pids = {int(row[0]) for row in rows}
        busy = [worker for worker in self.workers if worker.is_running and worker.pid in pids]
        return self.random.choice(busy) if busy else None

    # Faults -------------------------------------------------------------------------------------

    def note_blow(self, held: Sequence[int] = ()) -> None:
        """The fault is over now; `held` are the tasks that it hit."""
        self.blows.append(Blow(over=time.time(), held=list(held)))

    def let_run(self, sync: Process, seconds: float) -> None:
        """Let the run go on for a while, or to its end."""
        deadline = time.monotonic() + seconds
        eventually(lambda: time.monotonic() > deadline or not sync.is_running, within=seconds + 10)

    # The end ------------------------------------------------------------------------------------

    def report_of(self, sync: Process, *, within: float) -> dict[str, Any]:
        """Wait for the coordinator's end; it must have verified its copy."""
        code = sync.wait(within=within)
        assert code == 0, sync.log_end() + sync.output()[:2000]
        report = json.loads(sync.output())
        assert isinstance(report, dict)
        return report

    def check(self, report: Mapping[str, Any]) -> None:
        """The copy is whole, every chunk was recorded once, and both sides are alike."""
        assert report["verified"] is True
        assert report["status"] == "completed"
        assert (report["gaps"], report["duplicates"]) == (0, 0)
        assert report["failures"] == []
        chunks = report["chunks"]
        assert (chunks["completed"], chunks["failed"]) == (chunks["planned"], 0)
        (docs,) = report["collections"]
        assert docs["source_count"] == docs["target_count"] == len(self.source.records)
        self.check_ledger(str(report["run_id"]))
        self.check_stores()

    def check_ledger(self, run_id: str) -> None:
        """By plain SQL: one result for each task of the run and of its proof, and no hole."""
        proofs = self.ask(
            "SELECT id FROM sync_runs WHERE parent_run_id = %s AND status = 'completed'", run_id
        )
        assert len(proofs) == 1
        for (run,) in [(run_id,), *proofs]:
            rows = self.ask(
                "SELECT t.chunk_start_offset, t.chunk_end_offset, t.task_status,"
                " (SELECT count(*) FROM sync_results s WHERE s.task_id = t.id)"
                " FROM sync_tasks t WHERE t.run_id = %s ORDER BY t.chunk_start_offset",
                run,
            )
            assert {row[2:] for row in rows} == {("completed", 1)}
            ends = [0, *(row[1] for row in rows)]
            assert [row[0] for row in rows] == ends[:-1]
            assert ends[-1] == len(self.source.records)
        ((strange,),) = self.ask(
            "SELECT count(*) FROM sync_results s JOIN sync_tasks t ON t.id = s.task_id"
            " WHERE t.task_status <> 'completed'"
        )
        assert strange == 0

    def check_stores(self) -> None:
        """By the chromadb client: the same records on both sides."""
        found = everything(self.target.client, COLLECTION)
        assert found.keys() == self.source.records.keys()
        different = [id_ for id_, record in found.items() if record != self.source.records[id_]]
        assert different == []

    def suppressed(self) -> int:
        """How many late results were refused and counted."""
        ((count,),) = self.ask("SELECT sum(duplicates_suppressed)::int FROM sync_runs")
        return int(count)

    def recovery(self, scenario: str, form: str, **notes: object) -> Recovery:
        """The line of this scenario in the table."""
        rows = self.ask("SELECT task_id, extract(epoch FROM recorded_at)::float8 FROM sync_results")
        first, hit = longest_waits(self.blows, {int(task): float(at) for task, at in rows})
        ((seconds,),) = self.ask(
            "SELECT extract(epoch FROM max(finished_at) - min(created_at))::float8 FROM sync_runs"
        )
        return Recovery(
            scenario=scenario,
            form=form,
            run_seconds=float(seconds or 0),
            blows=len(self.blows),
            first_result=first,
            hit_tasks=hit,
            notes=notes,
        )


MakeScene = Callable[..., Scene]
