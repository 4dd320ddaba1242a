"""A sync of 1,000 records between two servers of its own, as a first look at an installation."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from coordinator.options import Options
from coordinator.report import Report
from coordinator.status import run_details
from coordinator.sync import Coordinator
from tasks.database import Database
from tasks.records import RecordBatch
from tasks.stores.address import parse_address
from tasks.stores.base import Collection
from tasks.stores.open import open_store
from tasks.stores.server import ChromaServer
from tasks.vectors import Vectors

RECORDS = 1000
CHUNK_SIZE = 100
WORKERS = 3
DIMENSION = 64


def selftest(
    database: Database, coordinator: Callable[..., Coordinator], *, console: Console
) -> bool:
    """Print what was planned, who worked and what was proven; True if all of it holds.

    `coordinator` makes one of a source and a target; it can start `WORKERS` workers.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chroma-sync-")))
        source, target = (_serve(stack, directory / side) for side in ("source", "target"))
        _fill(source)
        both = coordinator(source, target, assemble=True)
        with both.lead():
            report = both.sync(Options(chunk_size=CHUNK_SIZE, workers=WORKERS))
    found = both.workers_found
    return _print(console, report, run_details(database, str(report.run_id)), found)


def _serve(stack: contextlib.ExitStack, directory: Path) -> str:
    directory.mkdir()
    return stack.enter_context(ChromaServer(directory)).endpoint


def _fill(url: str) -> None:
    rng = np.random.default_rng(0)
    with contextlib.closing(open_store(parse_address(url), environ={})) as store:
        collection = store.create(
            Collection.new("selftest", configuration={"hnsw": {"space": "l2"}})
        )
        store.add(
            collection,
            RecordBatch(
                ids=[f"record-{number:04}" for number in range(RECORDS)],
                vectors=Vectors.of(rng.standard_normal((RECORDS, DIMENSION), dtype=np.float32)),
                documents=[f"This is record {number}." for number in range(RECORDS)],
                metadatas=[
                    {"number": number, "even": number % 2 == 0} for number in range(RECORDS)
                ],
                uris=[None] * RECORDS,
            ),
        )


def _print(console: Console, report: Report, run: dict[str, Any], workers: int) -> bool:
    chunks = run["chunks"]
    expected = RECORDS // CHUNK_SIZE
    lines = {
        "tasks created": (chunks["planned"], chunks["planned"] == expected),
        "workers found": (workers, workers == WORKERS),
        "tasks completed": (chunks["completed"], chunks["completed"] == expected),
        "tasks pending": (chunks["pending"], chunks["pending"] == 0),
        "duplicates": (report.ledger.duplicates, report.ledger.duplicates == 0),
        "gaps": (report.ledger.gaps, report.ledger.gaps == 0),
        "verification": ("passed" if report.verified else "failed", report.verified),
    }
    for name, (value, good) in lines.items():
        colour = "green" if good else "red"
        console.print(f"{name:<16} [{colour}]{value}[/]")
    return all(good for _value, good in lines.values())
