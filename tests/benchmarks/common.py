"""What all benchmarks of the command share."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console

from tests.eventually import eventually

PROGRAM = Path(sys.executable).parent / "chroma-sync"
PATIENCE = 60.0


def environment(database_url: str) -> dict[str, str]:
    """Of a command of ours: with this database, and no setting from outside."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SYNC_")}
    return outside | {"DATABASE_URL": database_url}


def start_command(environ: Mapping[str, str], *words: str) -> subprocess.Popen[bytes]:
    """Start a command of ours that leaves the work to `workers`."""
    command = [str(PROGRAM), *words, "--workers", "0", "--json"]
    return subprocess.Popen(command, env=dict(environ), stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def workers(environ: Mapping[str, str], logs: Path, count: int) -> Iterator[list[int]]:
    """So many workers, which live as long as this process does; gives their process ids."""
    with contextlib.ExitStack() as stack:
        pids = [
            stack.enter_context(_worker(environ, logs / f"worker-{number}.log"))
            for number in range(count)
        ]
        with psycopg.connect(environ["DATABASE_URL"], autocommit=True) as connection:
            eventually(lambda: _workers_there(connection) == count, within=PATIENCE)
        yield pids


def dimension_and_records(text: str) -> tuple[int, int]:
    """An argument of the form DIMENSION:RECORDS."""
    dimension, records = text.split(":")
    return int(dimension), int(records)


def write_results(path: Path, results: Any, console: Console) -> None:
    """Keep the figures as JSON, and say where."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"written to {path}")


@contextlib.contextmanager
def _worker(environ: Mapping[str, str], log: Path) -> Iterator[int]:
    words = [sys.executable, "-m", "coordinator.cli", "worker", "--until-stdin-closes"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, env=dict(environ), stdin=subprocess.PIPE, stdout=output, stderr=output
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _workers_there(connection: psycopg.Connection) -> int:
    query = "SELECT count(*) FROM sync_workers WHERE worker_status = 'active'"
    with contextlib.suppress(psycopg.errors.UndefinedTable):  # the first worker makes the schema
        row = connection.execute(query).fetchone()
        return int(row[0]) if row else 0
    return 0
