"""What all benchmarks of the command share."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

PROGRAM = Path(sys.executable).parent / "chroma-sync"


def environment(database_url: str) -> dict[str, str]:
    """Of a command of ours: with this database, and no setting from outside."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SYNC_")}
    return outside | {"DATABASE_URL": database_url}


def dimension_and_records(text: str) -> tuple[int, int]:
    """An argument of the form DIMENSION:RECORDS."""
    dimension, records = text.split(":")
    return int(dimension), int(records)


def write_results(path: Path, results: Any, console: Console) -> None:
    """Keep the figures as JSON, and say where."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"written to {path}")
