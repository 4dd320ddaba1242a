"""Looks at everything that can be wrong with a set-up, and says what to do about it.

Nothing is changed, on either store or in Postgres (a schema that is missing is only told of).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import uuid4

from psycopg import sql
from rich.console import Console

from coordinator.pairs import configured_pairs
from coordinator.schedule import LEASE
from coordinator.session import open_database
from tasks.database import Database, load_queries
from tasks.errors import ChromaSyncError
from tasks.schema import pending_migrations
from tasks.settings import Settings
from tasks.stores.address import Address, parse_address
from tasks.stores.chroma_directory import check_directory
from tasks.stores.open import open_store
from tasks.worker import DEFAULT_QUEUE
from tasks.workers import live_workers

QUERIES = load_queries("doctor")
OLDEST_POSTGRES = 14
CONNECTIONS_OF_A_PROCESS = 13  # a coordinator with a worker inside, at the most
CLOCK_SECONDS = 2.0
NOTIFY_SECONDS = 3.0


class Verdict(StrEnum):
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One thing that was looked at: what was found, and what to do if it is not good."""

    subject: str
    verdict: Verdict
    found: str
    advice: str = ""

    def document(self) -> dict[str, str]:
        fields = {"subject": self.subject, "verdict": self.verdict.value, "found": self.found}
        return fields | ({"advice": self.advice} if self.advice else {})


def examine(
    settings: Settings,
    addresses: Sequence[str] = (),
    *,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[Diagnosis]:
    """Everything, one after the other; `addresses` of stores (source, target) if not those of the
    settings."""
    stores = list(addresses)
    if not stores:
        yield from _pairs(settings, stores)
    yield from _postgres(settings)
    for number, address in enumerate(dict.fromkeys(stores)):
        yield from _store(settings, address, environ=environ, may_be_made=number % 2 == 1)


def print_diagnosis(console: Console, one: Diagnosis) -> None:
    """A line for a person, and what to do below it."""
    mark, colour = {
        Verdict.GOOD: ("ok", "green"),
        Verdict.WARNING: ("warning", "yellow"),
        Verdict.BAD: ("bad", "red"),
    }[one.verdict]
    console.print(f"[{colour}]{mark:<8}[/]", end="")
    console.print(f"{one.subject}: {one.found}", markup=False)
    if one.advice:
        console.print(f"{'':<8}{one.advice}", markup=False)


# The settings ----------------------------------------------------------------------------------


def _pairs(settings: Settings, stores: list[str]) -> Iterator[Diagnosis]:
    if not (settings.sync_pairs or settings.sync_source_url or settings.sync_target_url):
        yield _good("pairs", "none is configured; give two addresses to have stores looked at")
        return
    try:
        pairs = configured_pairs(settings)
    except ChromaSyncError as error:
        yield _bad("pairs", str(error))
        return
    for pair in pairs:
        yield _good("pairs", f"{pair.name}: {pair.schedule}")
        stores += [pair.source, pair.target]


# Postgres --------------------------------------------------------------------------------------


def _postgres(settings: Settings) -> Iterator[Diagnosis]:
    kind = "embedded" if settings.database_url is None else "DATABASE_URL"
    try:
        with open_database(settings, migrated=False) as database:
            yield from _postgres_itself(database, kind)
            is_ready = True
            for one in _schema(database):
                is_ready = is_ready and one.verdict is Verdict.GOOD
                yield one
            yield from _connections(database)
            yield from _clock(database)
            yield from _notifications(database)
            if is_ready:
                yield from _processes(database)
    except ChromaSyncError as error:
        yield _bad("postgres", str(error))


def _postgres_itself(database: Database, kind: str) -> Iterator[Diagnosis]:
    version, number = _row(database, "version")
    found = f"{kind}, version {version}"
    if int(number) < OLDEST_POSTGRES * 10000:
        yield _bad("postgres", found, f"Use version {OLDEST_POSTGRES} or newer.")
    else:
        yield _good("postgres", found)


def _schema(database: Database) -> Iterator[Diagnosis]:
    try:
        pending = pending_migrations(database)
    except ChromaSyncError as error:
        yield _bad("schema", str(error))
        return
    on_database, on_schema = _row(database, "rights_to_create")
    if not pending:
        yield _good("schema", "up to date")
        (missing,) = _row(database, "missing_rights")
        if missing:
            yield _bad(
                "rights",
                f"the database's user may not write {missing}",
                "Grant it SELECT, INSERT, UPDATE and DELETE there, or use the role that owns them.",
            )
        return
    if on_database and on_schema:
        yield _warning(
            "schema",
            f"{len(pending)} migrations are to be applied",
            "Any command applies them, or `chroma-sync migrate`.",
        )
    else:
        yield _bad(
            "schema",
            f"{len(pending)} migrations are to be applied, and the database's user may not",
            "Grant it CREATE on the database and on schema public, or migrate with another role.",
        )


def _connections(database: Database) -> Iterator[Diagnosis]:
    most, used = _row(database, "connections")
    left = int(most) - int(used)
    found = f"{used} of {most} are in use"
    if left < 2 * CONNECTIONS_OF_A_PROCESS:
        yield _warning(
            "connections",
            found,
            f"Each process of ours holds up to {CONNECTIONS_OF_A_PROCESS}: raise max_connections, "
            "or put a pooler before Postgres and set SYNC_LISTEN=false.",
        )
    else:
        yield _good("connections", found)


def _clock(database: Database) -> Iterator[Diagnosis]:
    before = datetime.now(UTC)
    (theirs,) = _row(database, "clock")
    after = datetime.now(UTC)
    off = max((before - theirs).total_seconds(), (theirs - after).total_seconds(), 0.0)
    if off > CLOCK_SECONDS:
        yield _warning(
            "clock",
            f"this machine and Postgres are {off:.1f} s apart",
            "Leases go by Postgres's clock and are safe; schedules and displays are off. Use NTP.",
        )
    else:
        yield _good("clock", "agrees with Postgres's")


def _notifications(database: Database) -> Iterator[Diagnosis]:
    """Whether a session is ours alone: LISTEN hears, and prepared statements stay."""
    if not database.listen:
        yield _good("listen", "off; workers poll every second")
        return
    channel = f"chroma_sync_doctor_{uuid4().hex[:8]}"
    name = sql.Identifier(channel)
    with database.connect() as listening, database.connect() as telling:
        listening.execute(sql.SQL("LISTEN {}").format(name))
        telling.execute("SELECT pg_notify(%s, '')", [channel])
        heard = next(iter(listening.notifies(timeout=NOTIFY_SECONDS, stop_after=1)), None)
        telling.execute(sql.SQL("UNLISTEN {}").format(name))
    if heard is None:
        yield _bad(
            "listen",
            f"a notification was not heard within {NOTIFY_SECONDS:g} s",
            "A pooler in transaction mode is before Postgres: set SYNC_LISTEN=false, or connect "
            "to Postgres itself.",
        )
    else:
        yield _good("listen", "notifications are heard")


def _processes(database: Database) -> Iterator[Diagnosis]:
    workers = live_workers(database, DEFAULT_QUEUE)
    yield _good("workers", f"{workers} at work" if workers else "none at work just now")
    row = _maybe_row(database, "leader", {"name": LEASE})
    yield _good("coordinator", f"{row[0]} leads" if row else "none leads just now")
    row = _maybe_row(database, "oldest_waiting")
    if row is not None and row[0] is not None and not workers and float(row[0]) > 60:
        yield _warning(
            "queue",
            f"messages have waited for {float(row[0]):,.0f} s, and no worker is there",
            "Start some with `chroma-sync worker`.",
        )


# Stores ----------------------------------------------------------------------------------------


def _store(
    settings: Settings, text: str, *, environ: Mapping[str, str], may_be_made: bool
) -> Iterator[Diagnosis]:
    try:
        address = parse_address(text)
        if address.kind == "directory":
            check_directory(Path(address.location), create=may_be_made)
            yield _directory(address)
            return
        store = open_store(
            address,
            environ=environ,
            connect_timeout=settings.sync_connect_timeout,
            read_timeout=settings.sync_read_timeout,
        )
        with contextlib.closing(store):
            began = time.monotonic()
            store.check()
            seconds = time.monotonic() - began
            collections = store.collections()
            found = f"Chroma {store.version()}, {len(collections)} collections"
            if seconds > 1:
                yield _warning(
                    str(address), f"{found}, but it took {seconds:.1f} s to answer", "Is it busy?"
                )
            else:
                yield _good(str(address), found)
    except ChromaSyncError as error:
        yield _bad("store", str(error))


def _directory(address: Address) -> Diagnosis:
    path = Path(address.location)
    place = path if path.exists() else path.parent
    if not os.access(place, os.W_OK | os.X_OK):
        return _bad(str(address), f"{place} cannot be written to", "Chroma must be able to.")
    return _good(str(address), "a Chroma directory" if path.exists() else "to be made")


# What is common --------------------------------------------------------------------------------


def _row(
    database: Database, query: str, arguments: Mapping[str, object] | None = None
) -> tuple[Any, ...]:
    row = _maybe_row(database, query, arguments)
    assert row is not None
    return row


def _maybe_row(
    database: Database, query: str, arguments: Mapping[str, object] | None = None
) -> tuple[Any, ...] | None:
    with database.connection() as connection:
        return connection.execute(QUERIES[query], arguments).fetchone()


def _good(subject: str, found: str) -> Diagnosis:
    return Diagnosis(subject=subject, verdict=Verdict.GOOD, found=found)


def _warning(subject: str, found: str, advice: str) -> Diagnosis:
    return Diagnosis(subject=subject, verdict=Verdict.WARNING, found=found, advice=advice)


def _bad(subject: str, found: str, advice: str = "") -> Diagnosis:
    return Diagnosis(subject=subject, verdict=Verdict.BAD, found=found, advice=advice)
