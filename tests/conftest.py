"""What all tests share: a real Postgres, a fresh database for each test that asks for one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from tasks.database import Database
from tasks.embedded import embedded_postgres
from tasks.schema import migrate

pytest_plugins = ["tests.browser"]


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Tests decide their settings themselves."""
    ours = {"DATABASE_URL", "ENABLE_SYNC_WORKER"}
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name in ours}
    kept |= {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("SYNC_")}
    yield
    os.environ.update(kept)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A Postgres server of our own.

    Not under pytest's temporary directory: as root the server runs as another user, whom each
    session of pytest that begins shuts out there.
    """
    with (
        tempfile.TemporaryDirectory(prefix="chroma-sync-postgres-") as directory,
        embedded_postgres(Path(directory)) as url,
    ):
        yield url


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    """A migrated database to copy from."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE template_migrated")
    database = Database(_with_database(postgres_url, "template_migrated"))
    database.open()
    migrate(database)
    database.close()
    return "template_migrated"


@pytest.fixture
def new_database(postgres_url: str) -> Iterator[Callable[[str], str]]:
    """Makes databases, from a template, and drops them after the test; gives their URLs."""
    made: list[str] = []

    def create(source: str) -> str:
        name = f"test_{uuid4().hex[:12]}"
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{source}"')
        made.append(name)
        return _with_database(postgres_url, name)

    yield create
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for name in made:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database_url(new_database: Callable[[str], str], template: str) -> str:
    """The URL of a fresh, migrated database."""
    return new_database(template)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A pool on a fresh, migrated database."""
    database = Database(database_url, max_connections=16)
    database.open()
    yield database
    database.close()


def _with_database(url: str, name: str) -> str:
    head, _, query = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}?{query}"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"
