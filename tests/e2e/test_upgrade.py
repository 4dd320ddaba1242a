"""A ledger of an earlier version is brought up to date, and what was begun under it goes on.

There is no earlier program here to begin anything. So a run of this one is cut short, and its rows
are taken to a database with an earlier schema: of each table, the columns that it had.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tasks.database import Database
from tasks.schema import known_migrations, migrate
from tests.e2e.conftest import Ask, Program, Side, everything, fill, wait_for_a_chunk

FIRST_LEDGER = 3  # the migration that made it
TABLES = (
    "sync_workers",
    "sync_runs",
    "sync_collections",
    "sync_manifests",
    "sync_tasks",
    "sync_results",
    "sync_unproven",
    "dramatiq.queue",
)
NUMBERED = {"sync_tasks": "id", "dramatiq.queue": "seq"}  # by Postgres


@pytest.mark.parametrize(
    "version", [one.version for one in known_migrations() if one.version >= FIRST_LEDGER][:-1]
)
def test_a_run_that_an_earlier_version_was_killed_in_goes_on(
    version: int,
    program: Program,
    sides: tuple[Side, Side],
    ask: Ask,
    database_url: str,
    new_database: Callable[[str], str],
    tmp_path: Path,
) -> None:
    source, target = sides
    fill(source.client, "docs", 2000, dimension=64)
    command = ("sync", source.url, target.url, "--chunk-size", "50")
    earlier_url = new_database("template1")
    with (
        psycopg.connect(database_url, autocommit=True) as now,
        psycopg.connect(earlier_url, autocommit=True) as earlier,
    ):
        begin_and_kill(program, command, ask)
        recorded = now.execute("SELECT task_id, attempt_token FROM sync_results").fetchall()
        bring_to(version, earlier_url)
        for table in TABLES:
            take(table, now, earlier)

        upgraded = Program(tmp_path, earlier_url)(*command, "--json")
        assert upgraded.code == 0, upgraded.err
        assert "Going on with run" in upgraded.err
        assert upgraded.document["verified"] is True
        assert upgraded.document["chunks"] == {"planned": 40, "completed": 40, "failed": 0}
        assert everything(source.client, "docs") == everything(target.client, "docs")

        # What was recorded before is as it was, and nothing was left behind in the queue.
        assert {*recorded} <= {
            *earlier.execute("SELECT task_id, attempt_token FROM sync_results").fetchall()
        }
        assert earlier.execute(
            "SELECT count(*) FROM dramatiq.queue WHERE state IN ('queued', 'consumed')"
        ).fetchone() == (0,)


def begin_and_kill(program: Program, command: tuple[str, ...], ask: Ask) -> None:
    """Leave a run with chunks that are done, in hand, and waiting."""
    with (
        program.start("worker", SYNC_LEASE_SECONDS="2") as worker,
        program.start(*command, "--workers", "0") as running,
    ):
        wait_for_a_chunk(ask)
        for process in (worker, running):
            process.kill()
            process.communicate()


def bring_to(version: int, url: str) -> None:
    database = Database(url)
    database.open()
    migrate(database, [one for one in known_migrations() if one.version <= version])
    database.close()


def take(table: str, now: psycopg.Connection, earlier: psycopg.Connection) -> None:
    """The rows of a table, without the columns that it did not have."""
    names = [
        name
        for (name,) in earlier.execute(
            "SELECT attname FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            [table],
        )
    ]
    place = sql.Identifier(*table.split("."))
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    with (
        now.cursor().copy(sql.SQL("COPY {} ({}) TO STDOUT").format(place, columns)) as rows,
        earlier.cursor().copy(sql.SQL("COPY {} ({}) FROM STDIN").format(place, columns)) as copied,
    ):
        for block in rows:
            copied.write(block)
    if number := NUMBERED.get(table):
        column = sql.Identifier(number)
        earlier.execute(
            sql.SQL("SELECT setval(pg_get_serial_sequence(%s, %s), max({})) FROM {}").format(
                column, place
            ),
            [table, number],
        )
