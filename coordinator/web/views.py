"""Reads the documents of the API from Postgres."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any
from uuid import UUID

from coordinator import pair_state
from coordinator.schedule import LEASE
from coordinator.web.documents import (
    Chunks,
    Ended,
    Failure,
    Grid,
    Leader,
    Overview,
    Pair,
    Part,
    Run,
    Segment,
    Share,
    Store,
    Task,
    TaskPage,
    Trouble,
    Work,
    Worker,
)
from tasks.database import Connection, Database, load_queries
from tasks.errors import RunNotFound
from tasks.stores.address import parse_address
from tasks.throttle import Limits, read_limits

QUERIES = load_queries("web")
SHOWN_RUNS = 4  # at work at the same time, on the page
SHOWN_FAILURES = 20
CELLS = 1600  # of a grid; more chunks are grouped
SEGMENTS = 60  # collections that a grid tells apart
STALLED = timedelta(minutes=1)  # without a sign of life
OVERDUE = timedelta(minutes=1)
WORKER_MINUTES = 10  # that a worker which is no more is shown

Row = tuple[Any, ...]


@contextlib.contextmanager
def reading(database: Database) -> Iterator[Connection]:
    """A transaction that reads, with an end to patience."""
    with database.transaction() as connection:
        connection.execute(QUERIES["begin"])
        yield connection


class Views:
    """Everything there is to see."""

    def __init__(self, database: Database, *, may_change: bool) -> None:
        self._database = database
        self._may_change = may_change
        self._reports: dict[UUID, tuple[datetime, dict[str, int]]] = {}

    def overview(self) -> Overview:
        """All that the page shows, but for the past."""
        pairs = self.pairs()
        with reading(self._database) as connection:
            runs = self._runs(connection, "runs_at_work", count=SHOWN_RUNS) or self._runs(
                connection, "runs", count=1, pair=None, before=None
            )
            work = [_work(connection, run) for run in runs if run.parts]
            return Overview(
                at=_now(connection),
                version=version("chroma-sync"),
                may_change=self._may_change,
                leader=_leader(connection),
                pairs=pairs,
                work=work,
                workers=_workers(connection),
                trouble=_trouble(connection, [one.run for one in work if one.run.ended is None]),
            )

    # Pairs, workers, stores -------------------------------------------------------------------

    def pairs(self) -> list[Pair]:
        with reading(self._database) as connection:
            now = _now(connection)
        return [_pair(status, now) for status in pair_state.statuses(self._database)]

    def workers(self) -> list[Worker]:
        with reading(self._database) as connection:
            return _workers(connection)

    def stores(self) -> list[Store]:
        """The servers of all pairs, and those that have limits."""
        limits = read_limits(self._database)
        roles: dict[str, list[dict[str, str]]] = {server: [] for server in limits}
        with reading(self._database) as connection:
            for url, pair, role in connection.execute(QUERIES["stores"]):
                server = parse_address(url).location
                roles.setdefault(server, []).append({"pair": pair, "role": role})
        return [
            Store.model_validate(
                {
                    "server": server,
                    "roles": roles[server],
                    "records_per_second": limits.get(server, Limits()).records_per_second,
                    "requests_in_flight": limits.get(server, Limits()).requests_in_flight,
                }
            )
            for server in sorted(roles)
        ]

    # Runs -------------------------------------------------------------------------------------

    def runs(self, *, pair: str | None, before: datetime | None, count: int) -> list[Run]:
        with reading(self._database) as connection:
            return self._runs(connection, "runs", pair=pair, before=before, count=count)

    def run(self, run_id: UUID) -> Run:
        """A run; of a part, the run that it is a part of. Raises `RunNotFound`."""
        with reading(self._database) as connection:
            return self._run(connection, run_id)

    def work(self, run_id: UUID) -> Work:
        """A run with its chunks. Raises `RunNotFound`."""
        with reading(self._database) as connection:
            return _work(connection, self._run(connection, run_id))

    def failures(self, run_id: UUID, *, count: int) -> list[Failure]:
        """The failed chunks of a run and its parts. Raises `RunNotFound`."""
        with reading(self._database) as connection:
            return _failures(connection, [self._run(connection, run_id).run_id], count=count)

    def tasks(self, run_id: UUID, *, status: str | None, after: int, count: int) -> TaskPage:
        """The tasks of a run or of a part of one. Raises `RunNotFound`."""
        with reading(self._database) as connection:
            self._run(connection, run_id)
            rows = connection.execute(
                QUERIES["tasks"],
                {"run_id": run_id, "status": status, "after": after, "count": count + 1},
            ).fetchall()
        tasks = [Task(**dict(zip(Task.model_fields, row, strict=True))) for row in rows[:count]]
        return TaskPage(tasks=tasks, next_after=tasks[-1].task_id if len(rows) > count else None)

    def history(self, *, pair: str | None, count: int) -> list[Ended]:
        """Runs that have ended, oldest first."""
        ended = []
        with reading(self._database) as connection:
            rows = connection.execute(QUERIES["ended"], {"pair": pair, "count": count}).fetchall()
            for run_id, kind, of, status, verified, begun, end in reversed(rows):
                ended.append(
                    Ended(
                        run_id=run_id,
                        kind=kind,
                        pair=of,
                        status=status,
                        verified=verified,
                        begun=begun,
                        ended=end,
                        **self._sums(connection, run_id, end),
                    )
                )
        self._reports = {one.run_id: self._reports[one.run_id] for one in ended}
        return ended

    def _sums(self, connection: Connection, run_id: UUID, end: datetime) -> dict[str, int]:
        """What a run's report adds up to. A run that has ended stays as it is, so it is read once.

        Not in SQL: a report may hold `\\u0000`, which its JSON operators refuse.
        """
        known = self._reports.get(run_id)
        if known is not None and known[0] == end:
            return known[1]
        row = connection.execute(QUERIES["report"], {"run_id": run_id}).fetchone()
        collections = ((row and row[0]) or {}).get("collections", [])
        sums = {
            name: sum(int(one.get(field) or 0) for one in collections for field in fields)
            for name, fields in {
                "written": ("added", "updated", "deleted"),
                "unchanged": ("unchanged",),
                "unlike": ("missing", "extra", "differing", "unreadable", "failed"),
            }.items()
        }
        self._reports[run_id] = (end, sums)
        return sums

    def _run(self, connection: Connection, run_id: UUID) -> Run:
        found = self._runs(connection, "run", run_id=run_id)
        if not found:
            raise RunNotFound(f"No run {run_id}.")
        return found[0]

    def _runs(self, connection: Connection, query: str, **values: object) -> list[Run]:
        rows = connection.execute(QUERIES[query], values).fetchall()
        parts: dict[UUID, list[Part]] = {row[0]: [] for row in rows}
        for row in connection.execute(QUERIES["parts"], {"run_ids": list(parts)}):
            parts[row[0]].append(_part(row[1:]))
        fields = list(Run.model_fields)[:-1]
        return [Run(**dict(zip(fields, row, strict=True)), parts=parts[row[0]]) for row in rows]


def _now(connection: Connection) -> datetime:
    row = connection.execute(QUERIES["now"]).fetchone()
    assert row is not None
    now: datetime = row[0]
    return now


def _leader(connection: Connection) -> Leader | None:
    row = connection.execute(QUERIES["leader"], {"name": LEASE}).fetchone()
    return Leader(holder=row[0], term=row[1]) if row else None


def _pair(status: pair_state.PairStatus, now: datetime) -> Pair:
    alike = status.fresh_as_of
    return Pair.model_validate(
        {
            "name": status.name,
            "source": status.source_url,
            "target": status.target_url,
            "schedule": status.schedule,
            "state": _pair_state(status, now),
            "paused": status.paused,
            "requested": status.requested,
            "next_run": status.next_run_at,
            "error": status.error,
            "run_id": status.run_id,
            "run_status": status.run_status,
            "run_verified": status.run_verified,
            "run_begun": status.run_begun,
            "last_sign_of_life": status.moved_at,
            "alike_as_of": alike,
            "lag": None if alike is None else max(0.0, (now - alike).total_seconds()),
        }
    )


def _pair_state(status: pair_state.PairStatus, now: datetime) -> str:
    """One word for how a pair is. What needs somebody comes before what goes well."""
    unfinished = status.run_status in ("planning", "running", "verifying")
    if unfinished and status.moved_at is not None and now - status.moved_at > STALLED:
        return "stalled"
    if status.paused:
        return "paused"
    if unfinished:
        return "syncing"
    # A run that is no proof of alikeness may still have caught up with a source that never rests.
    is_fresh = status.fresh_as_of is not None and status.fresh_as_of == status.run_begun
    is_unlike = status.run_verified is False and not is_fresh
    if status.error is not None or status.run_status == "failed" or is_unlike:
        return "failed"
    if status.next_run_at is not None and now - status.next_run_at > OVERDUE:
        return "overdue"
    if status.fresh_as_of is None:
        return "waiting"
    return "caught up" if status.run_verified is False else "alike"


def _part(row: Row) -> Part:
    run_id, kind, status, verified, begun, ended, *counts = row
    planned, pending, processing, completed, failed, records, done, rate = counts
    left = (records - done) / rate if rate and ended is None else None
    return Part(
        run_id=run_id,
        kind=kind,
        status=status,
        verified=verified,
        begun=begun,
        ended=ended,
        chunks=Chunks(
            planned=planned,
            pending=pending,
            processing=processing,
            completed=completed,
            failed=failed,
        ),
        records=records,
        records_done=done,
        records_per_second=rate,
        seconds_left=left,
    )


def _work(connection: Connection, run: Run) -> Work:
    """With the part that was planned last; once it has ended, the one with the most chunks."""
    planned = [part for part in run.parts if part.chunks.planned]
    part = max(planned or run.parts, key=lambda one: one.chunks.planned)
    if planned and run.ended is None:
        part = planned[-1]
    rows = connection.execute(
        QUERIES["shares"], {"run_ids": [one.run_id for one in run.parts]}
    ).fetchall()
    return Work(
        run=run,
        part=part.run_id,
        grid=_grid(connection, part),
        shares=[Share(worker_id=name, chunks=count) for name, count in rows],
    )


def _grid(connection: Connection, part: Part) -> Grid:
    per_cell = max(1, -(-part.chunks.planned // CELLS))
    rows = connection.execute(
        QUERIES["grid"], {"run_id": part.run_id, "per_cell": per_cell}
    ).fetchall()
    segments: dict[str, tuple[int, list[str]]] = {}
    names = {row[0] for row in rows}
    for name, chunks, completed, processing, failed in rows:
        # Too many collections to tell apart: they follow each other without a break.
        shown = name if len(names) <= SEGMENTS else f"{len(names):,} collections"
        count, cells = segments.get(shown, (0, []))
        cells.append(_cell(chunks, completed, processing, failed))
        segments[shown] = (count + chunks, cells)
    return Grid(
        run_id=part.run_id,
        per_cell=per_cell,
        segments=[
            Segment(collection=name, chunks=count, cells="".join(cells))
            for name, (count, cells) in segments.items()
        ],
    )


def _cell(chunks: int, completed: int, processing: int, failed: int) -> str:
    if failed:
        return "f"
    if processing:
        return "r"
    if completed == chunks:
        return "c"
    return str(max(1, completed * 10 // chunks)) if completed else "p"


def _workers(connection: Connection) -> list[Worker]:
    rows = connection.execute(QUERIES["workers"], {"minutes": WORKER_MINUTES}).fetchall()
    return [Worker(**dict(zip(Worker.model_fields, row, strict=True))) for row in rows]


def _failures(connection: Connection, run_ids: Sequence[UUID], *, count: int) -> list[Failure]:
    rows = connection.execute(
        QUERIES["failures"], {"run_ids": list(run_ids), "count": count}
    ).fetchall()
    return [Failure(**dict(zip(Failure.model_fields, row, strict=True))) for row in rows]


def _trouble(connection: Connection, at_work: Sequence[Run]) -> list[Trouble]:
    """What went wrong in runs at work, and in the last run of each pair."""
    runs = {run.run_id: (run.pair, run.status, run.error) for run in at_work}
    wrong = set()
    for run_id, pair, status, error, is_unlike in connection.execute(QUERIES["newest_ended"]):
        if status == "failed" or is_unlike:
            wrong.add(run_id)
            runs.setdefault(run_id, (pair, status, error))
    failures = _failures(connection, list(runs), count=SHOWN_FAILURES)
    return [
        Trouble(
            run_id=run_id,
            pair=pair,
            status=status,
            error=error,
            failures=[one for one in failures if one.run_id == run_id],
        )
        for run_id, (pair, status, error) in runs.items()
        if run_id in wrong or any(one.run_id == run_id for one in failures)
    ]
