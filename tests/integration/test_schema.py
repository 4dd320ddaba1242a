"""Migrations: once, in order, under a lock, and never from a file that was changed."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tasks import database as database_module
from tasks.database import Database
from tasks.errors import DatabaseRefused, DatabaseUnavailable, InvalidInput, SchemaMismatch
from tasks.schema import Migration, known_migrations, migrate


@pytest.fixture
def empty(new_database: Callable[[str], str]) -> Database:
    database = Database(new_database("template1"))
    database.open()
    return database


def test_each_migration_is_applied_once_by_processes_that_start_together(empty: Database) -> None:
    with ThreadPoolExecutor(4) as threads:
        applied = list(threads.map(lambda _: migrate(empty), range(4)))
    assert sorted(map(len, applied)) == [0, 0, 0, len(known_migrations())]
    with empty.connection() as connection:
        rows = connection.execute(
            "SELECT version FROM sync_migrations ORDER BY applied_at, version"
        )
        assert [version for (version,) in rows] == [m.version for m in known_migrations()]
    empty.close()


def test_a_migration_that_was_changed_after_it_was_applied_is_refused(empty: Database) -> None:
    migrate(empty)
    first, *rest = known_migrations()
    changed = dataclasses.replace(first, sql=first.sql + "\n-- changed")
    with pytest.raises(SchemaMismatch, match="0001_queue was changed"):
        migrate(empty, [changed, *rest])
    empty.close()


def test_a_schema_newer_than_the_program_is_refused(empty: Database) -> None:
    newer = Migration(version=9999, name="future", sql="SELECT 1")
    migrate(empty, [*known_migrations(), newer])
    with pytest.raises(SchemaMismatch, match="9999, newer than this program"):
        migrate(empty)
    empty.close()


def test_a_migration_that_fails_leaves_nothing_behind(empty: Database) -> None:
    half = Migration(version=1, name="half", sql="CREATE TABLE half (); SELECT 1 / 0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty, [half])
    with empty.connection() as connection:
        assert connection.execute("SELECT to_regclass('half')").fetchone() == (None,)
    empty.close()


def test_a_queue_that_dramatiq_pg_made_itself_is_taken_over(empty: Database) -> None:
    import dramatiq_pg

    with empty.connection() as connection:
        connection.execute(dramatiq_pg.generate_init_sql().encode())
        connection.execute(
            "INSERT INTO dramatiq.queue (message_id, queue_name, state, message)"
            " VALUES (gen_random_uuid(), 'default', 'queued', '{}')"
        )
    migrate(empty)
    with empty.connection() as connection:
        row = connection.execute("SELECT state::text, deliveries FROM dramatiq.queue").fetchone()
        assert row == ("queued", 0)
    empty.close()


def test_a_role_without_rights_is_told_so(empty: Database) -> None:
    with empty.connection() as connection:
        connection.execute("DROP ROLE IF EXISTS nobody_much")
        connection.execute("CREATE ROLE nobody_much LOGIN")
    poor = Database(empty.url.replace("postgres:@", "nobody_much:@"))
    poor.open()
    with pytest.raises(DatabaseRefused, match="Postgres lacks rights"):
        migrate(poor)
    poor.close()
    empty.close()


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("postgresql://u:hush@127.0.0.1:1/x", DatabaseUnavailable, "does not connect"),
        ("hush this is no address", InvalidInput, "is not a Postgres address"),
    ],
)
def test_a_database_that_does_not_connect_is_told_without_its_password(
    url: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        Database(url).open()
    assert "hush" not in str(caught.value)


def test_a_database_that_is_not_there_is_told(postgres_url: str) -> None:
    with pytest.raises(DatabaseRefused, match='database "nowhere" does not exist'):
        Database(postgres_url.replace("/postgres?", "/nowhere?")).open()


def test_a_postgres_that_is_full_for_a_moment_is_waited_for(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS one_at_a_time")
        admin.execute("CREATE ROLE one_at_a_time LOGIN CONNECTION LIMIT 1")
    url = postgres_url.replace("postgres:@", "one_at_a_time:@")
    held = psycopg.connect(url)
    opened = threading.Event()

    def open_soon() -> None:
        database = Database(url, max_connections=1)
        database.open()
        opened.set()
        database.close()

    thread = threading.Thread(target=open_soon)
    thread.start()
    assert not opened.wait(0.5)
    held.close()
    assert opened.wait(10)
    thread.join()

    monkeypatch.setattr(database_module, "OPEN_TIMEOUT", 0.1)
    with psycopg.connect(url), pytest.raises(DatabaseUnavailable, match="too many connections"):
        Database(url).open()


def test_nobody_holds_locks_for_ever(database: Database) -> None:
    with database.connection() as connection:
        row = connection.execute("SHOW idle_in_transaction_session_timeout").fetchone()
    assert row == ("10s",)
