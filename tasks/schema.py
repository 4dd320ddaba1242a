"""Applies the numbered SQL of `migrations/`, once each, in order, under a lock."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources

from tasks.database import Connection, Database
from tasks.errors import SchemaMismatch

# Any constant does, as long as all programs that migrate agree on it.
_LOCK = 0x6368726F6D61  # "chroma"

_FILE = re.compile(r"^(\d{4})_(\w+)\.sql$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def known_migrations() -> list[Migration]:
    """The migrations that this program brings, ordered by version."""
    found = []
    for entry in resources.files("migrations").iterdir():
        if match := _FILE.match(entry.name):
            sql = entry.read_text(encoding="utf-8")
            found.append(Migration(version=int(match[1]), name=match[2], sql=sql))
    return sorted(found, key=lambda migration: migration.version)


def migrate(database: Database, migrations: list[Migration] | None = None) -> list[Migration]:
    """Apply what is not applied yet, all or nothing, and return it.

    Raises `SchemaMismatch` if the database is ahead of the program, or if an applied file differs
    from the one that was applied.
    """
    known = known_migrations() if migrations is None else migrations
    with database.transaction() as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        applied = _applied(connection)
        _refuse_mismatch(known, applied)
        pending = [migration for migration in known if migration.version not in applied]
        for migration in pending:
            connection.execute(migration.sql.encode())
            connection.execute(
                "INSERT INTO sync_migrations (version, name, checksum) VALUES (%s, %s, %s)",
                [migration.version, migration.name, migration.checksum],
            )
    return pending


def pending_migrations(database: Database) -> list[Migration]:
    """What `migrate` would apply; nothing is changed. Raises `SchemaMismatch`, as it does."""
    known = known_migrations()
    with database.connection() as connection:
        row = connection.execute("SELECT to_regclass('sync_migrations') IS NOT NULL").fetchone()
        applied = _applied(connection) if row == (True,) else {}
    _refuse_mismatch(known, applied)
    return [migration for migration in known if migration.version not in applied]


def _applied(connection: Connection) -> dict[int, str]:
    # Asked first, so that a role without the right to create may still use a migrated database.
    row = connection.execute("SELECT to_regclass('sync_migrations') IS NOT NULL").fetchone()
    if row != (True,):
        connection.execute(
            """
            CREATE TABLE sync_migrations (
                version    integer PRIMARY KEY,
                name       text NOT NULL,
                checksum   text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now()
            )
            """
        )
    return dict(connection.execute("SELECT version, checksum FROM sync_migrations").fetchall())


def _refuse_mismatch(known: list[Migration], applied: dict[int, str]) -> None:
    by_version = {migration.version: migration for migration in known}
    for version, checksum in sorted(applied.items()):
        if version not in by_version:
            raise SchemaMismatch(
                f"The database has migration {version:04}, newer than this program; "
                "update chroma-sync, or use the database that belongs to this version."
            )
        migration = by_version[version]
        if migration.checksum != checksum:
            raise SchemaMismatch(
                f"Migration {version:04}_{migration.name} was changed after it was applied; "
                "restore the file, and put the change into a new migration."
            )
