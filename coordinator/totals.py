"""Totals that only grow: of all runs that have ended, and of those that go on.

What a run that has ended came to is added once to `sync_metrics`; so the past costs nothing to look
at, and may be deleted. A run that goes on, or that was taken up again, is counted as it stands. One
transaction sees each run in one of the two places, so that no total ever falls.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from uuid import UUID

from psycopg.types.json import Jsonb

from tasks.database import Connection, Database, load_queries

QUERIES = load_queries("metrics")
RUNS_AT_A_TIME = 5

DURATION_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
WAIT_BOUNDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)

Totals = dict[tuple[str, str, str], float]  # by metric, kind and label


def read_totals(database: Database, *, until: float) -> Totals:
    """All totals, as of now; 0 for what nothing is known of.

    `until`: when (on the monotonic clock) it has to be done.
    """
    count_ended(database, until=until)
    totals: Totals = defaultdict(float)
    with database.transaction() as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        limit_statements(connection, until)
        for metric, kind, label, value in connection.execute(QUERIES["counted_totals"]):
            totals[metric, kind, label] += value
        uncounted = dict(connection.execute(QUERIES["uncounted_runs"]).fetchall())
        for run_id, found in _totals_of(connection, list(uncounted)).items():
            for key, value in _beyond(found, uncounted[run_id]).items():
                totals[key] += value
    return totals


def limit_statements(connection: Connection, until: float) -> None:
    """Let no statement of this transaction take longer than is left."""
    left = max(0.1, until - time.monotonic())
    connection.execute(QUERIES["settle"], {"milliseconds": int(left * 1000)})


def count_ended(database: Database, *, until: float) -> None:
    """Add all runs that have ended to what is counted, as far as there is time until then."""
    while time.monotonic() < until and _count_some(database, until=until):
        pass


def _count_some(database: Database, *, until: float) -> bool:
    """Add runs that have ended to what is counted; False if there are no more for us."""
    with database.transaction() as connection:
        limit_statements(connection, until)
        if connection.execute(QUERIES["lock_totals"]).fetchone() != (True,):
            return False
        ended = dict(
            connection.execute(QUERIES["ended_runs"], {"count": RUNS_AT_A_TIME}).fetchall()
        )
        totals = _totals_of(connection, list(ended))
        for run_id, counted in ended.items():
            found = totals.get(run_id, {})
            connection.cursor().executemany(
                QUERIES["add_totals"],
                [
                    {"metric": metric, "kind": kind, "label": label, "value": value}
                    for (metric, kind, label), value in _beyond(found, counted).items()
                ],
            )
            as_json = Jsonb({"\t".join(key): value for key, value in found.items()})
            connection.execute(QUERIES["mark_counted"], {"run_id": run_id, "counted": as_json})
    return len(ended) == RUNS_AT_A_TIME


def _totals_of(connection: Connection, run_ids: Sequence[UUID]) -> dict[UUID, Totals]:
    found: dict[UUID, Totals] = {}
    if run_ids:
        rows = connection.execute(
            QUERIES["run_totals"],
            {
                "run_ids": list(run_ids),
                "duration_bounds": list(DURATION_BOUNDS),
                "wait_bounds": list(WAIT_BOUNDS),
            },
        )
        for run_id, metric, kind, label, value in rows:
            found.setdefault(run_id, {})[metric, kind, label] = value
    return found


def _beyond(found: Totals, counted: Mapping[str, float] | None) -> Totals:
    """What is not counted yet of a run that was counted before it was taken up again."""
    already = counted or {}
    return {key: max(0.0, value - already.get("\t".join(key), 0.0)) for key, value in found.items()}
