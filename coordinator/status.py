"""What the ledger says of runs, for `chroma-sync status`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordinator.pair_state import PairStatus
from coordinator.verify import prove_ledger
from tasks.database import Database, load_queries
from tasks.errors import RunNotFound
from tasks.ledger import Ledger

QUERIES = load_queries("plan")
SHOWN_RUNS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    run_id: UUID
    kind: str
    source_url: str
    target_url: str
    status: str
    verified: bool | None
    error: str | None
    report: dict[str, Any] | None
    created_at: datetime
    planned_at: datetime | None
    finished_at: datetime | None
    duplicates_suppressed: int
    options: dict[str, Any]
    one_way: bool


def find_run(database: Database, prefix: str) -> Run:
    """The run whose id begins so. Raises `RunNotFound` unless there is exactly one."""
    with database.connection() as connection:
        rows = connection.execute(QUERIES["run"], {"prefix": prefix.lower()}).fetchall()
    if not rows:
        raise RunNotFound(f"No run {prefix!r}; `chroma-sync status` lists the latest.")
    if len(rows) > 1:
        raise RunNotFound(f"Several runs begin with {prefix!r}; give more of the id.")
    return Run(**dict(zip(Run.__dataclass_fields__, rows[0], strict=True)))


def recent_runs(database: Database) -> list[dict[str, Any]]:
    """The latest runs, newest first."""
    with database.connection() as connection:
        rows = connection.execute(QUERIES["recent_runs"], {"count": SHOWN_RUNS}).fetchall()
    fields = ("run_id", "kind", "source", "target", "status", "verified", "error")
    return [
        dict(zip(fields, (str(row[0]), *row[1:7]), strict=True))
        | {
            "created_at": row[7].isoformat(),
            "finished_at": row[8].isoformat() if row[8] else None,
            "chunks": {"planned": row[9], "completed": row[10], "failed": row[11]},
        }
        for row in rows
    ]


def run_details(database: Database, prefix: str) -> dict[str, Any]:
    """One run: its chunks by state, its workers, its proof so far and its failures."""
    run = find_run(database, prefix)
    ledger = Ledger(database)
    progress = ledger.progress(run.run_id)
    proof = prove_ledger(database, run.run_id)
    with database.connection() as connection:
        workers = connection.execute(QUERIES["run_workers"], {"run_id": run.run_id}).fetchall()
    return {
        "run_id": str(run.run_id),
        "kind": run.kind,
        "source": run.source_url,
        "target": run.target_url,
        "status": run.status,
        "verified": run.verified,
        "error": run.error,
        "created_at": run.created_at.isoformat(),
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
        "collections": (run.report or {}).get("collections", []),
        "chunks": {
            "planned": progress.planned,
            "completed": progress.completed,
            "failed": progress.failed,
            "pending": progress.chunks.get("pending", 0),
            "processing": progress.chunks.get("processing", 0),
        },
        "gaps": proof.gaps,
        "duplicates": proof.duplicates,
        "duplicates_suppressed": run.duplicates_suppressed,
        "workers": [{"worker_id": name, "completed": count} for name, count in workers],
        "failures": ledger.failures(run.run_id),
    }


def print_runs(console: Console, runs: list[dict[str, Any]]) -> None:
    if not runs:
        console.print("No runs yet. Begin with `chroma-sync sync SOURCE TARGET`.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("run", "kind", "begun", "status", "chunks", "verified", "source", "target"):
        table.add_column(
            column,
            justify="right" if column == "chunks" else "left",
            overflow="fold",
            no_wrap=False,
        )
    for run in runs:
        chunks = run["chunks"]
        table.add_row(
            run["run_id"][:8],
            run["kind"],
            run["created_at"][:19].replace("T", " "),
            _coloured_status(run["status"]),
            f"{chunks['completed']:,}/{chunks['planned']:,}",
            _coloured_verdict(run["verified"]),
            escape(run["source"]),
            escape(run["target"]),
        )
    console.print(table)


def print_pairs(console: Console, pairs: Sequence[PairStatus]) -> None:
    if not pairs:
        console.print("No pairs yet; `chroma-sync coordinator` makes those of its settings known.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("pair", "schedule", "alike as of", "last run", "next run", "source", "target"):
        table.add_column(column, overflow="fold")
    for pair in pairs:
        next_run = _moment(pair.next_run_at)
        if pair.paused:
            next_run = "[yellow]paused[/]"
        elif pair.requested:
            next_run = f"{pair.requested} now"
        table.add_row(
            escape(pair.name),
            pair.schedule,
            _moment(pair.fresh_as_of),
            _coloured_status(pair.run_status) if pair.run_status else "-",
            next_run,
            escape(pair.source_url),
            escape(pair.target_url),
        )
    console.print(table)
    for pair in pairs:
        if pair.error:
            console.print(f"{pair.name}: {pair.error}", style="red", markup=False)


def print_run(console: Console, run: dict[str, Any]) -> None:
    chunks = run["chunks"]
    lines = {
        "run": run["run_id"],
        "kind": run["kind"],
        "source": escape(run["source"]),
        "target": escape(run["target"]),
        "status": _coloured_status(run["status"]),
        "verified": _coloured_verdict(run["verified"]),
        "begun": run["created_at"][:19].replace("T", " "),
        "ended": (run["finished_at"] or "-")[:19].replace("T", " "),
        "chunks": (
            f"{chunks['completed']:,} completed, {chunks['processing']:,} processing, "
            f"{chunks['pending']:,} pending, {chunks['failed']:,} failed "
            f"of {chunks['planned']:,}"
        ),
        "ledger": (
            f"{run['gaps']} gaps, {run['duplicates']} duplicates, "
            f"{run['duplicates_suppressed']} late results suppressed"
        ),
    }
    for name, value in lines.items():
        console.print(f"{name:<9} {value}")
    for worker in run["workers"]:
        console.print(f"worker    {worker['worker_id']}: {worker['completed']:,} chunks")
    if run["error"]:
        console.print(f"error     {run['error']}", style="red", markup=False)
    for failure in run["failures"]:
        console.print(
            f"failed    {failure['collection']}: chunk {failure['start']:,} to "
            f"{failure['end']:,}: {failure['error']}",
            style="red",
            markup=False,
        )


def _moment(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _coloured_status(status: str) -> str:
    colours = {
        "completed": "green",
        "failed": "red",
        "interrupted": "yellow",
        "cancelled": "yellow",
    }
    return f"[{colours.get(status, 'cyan')}]{status}[/]"


def _coloured_verdict(verified: bool | None) -> str:
    return {True: "[green]yes[/]", False: "[red]no[/]", None: "-"}[verified]
