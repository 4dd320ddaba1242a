"""What Postgres knows of the pairs on a schedule: shared by the leader, the web page and the
command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from coordinator.pairs import ScheduledPair
from tasks.database import Database, load_queries
from tasks.errors import InvalidInput
from tasks.stores.address import parse_address

QUERIES = load_queries("pairs")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the leader has to know of a pair."""

    paused: bool
    requested: str | None
    begun: datetime | None  # its newest sync
    is_left: bool  # that sync has not ended


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStatus:
    """A pair as people see it. Times are Postgres's, in UTC."""

    name: str
    source_url: str
    target_url: str
    schedule: str
    paused: bool
    requested: str | None
    next_run_at: datetime | None
    error: str | None  # why the last run could not be done
    run_id: UUID | None  # the newest run
    run_status: str | None
    run_verified: bool | None
    run_begun: datetime | None
    fresh_as_of: datetime | None  # the target held then all that the source held
    moved_at: datetime | None  # the newest run's last sign of life


class PairAction(StrEnum):
    """What somebody may want of a pair."""

    SYNC = "sync"
    VERIFY = "verify"
    PAUSE = "pause"
    RESUME = "resume"

    def carry_out(self, database: Database, name: str) -> None:
        """Do it, or have the leader do it. Raises `InvalidInput` if there is no such pair."""
        if self in (PairAction.SYNC, PairAction.VERIFY):
            request(database, name, self.value)
        else:
            set_paused(database, name, paused=self is PairAction.PAUSE)


def register(database: Database, pairs: Sequence[ScheduledPair]) -> None:
    """Make these the pairs that are kept alike."""
    with database.transaction() as connection:
        for pair in pairs:
            connection.execute(
                QUERIES["register"],
                {
                    "name": pair.name,
                    "source_url": str(parse_address(pair.source)),
                    "target_url": str(parse_address(pair.target)),
                    "schedule": str(pair.schedule),
                },
            )
        connection.execute(QUERIES["unregister_others"], {"names": [pair.name for pair in pairs]})


def read_state(database: Database, name: str) -> State:
    """What the leader has to know of a pair that is registered."""
    with database.connection() as connection:
        row = connection.execute(QUERIES["state"], {"name": name}).fetchone()
    assert row is not None
    paused, requested, begun, is_left = row
    return State(paused=paused, requested=requested, begun=begun, is_left=bool(is_left))


def note_due(database: Database, name: str, due: datetime) -> None:
    with database.connection() as connection:
        connection.execute(QUERIES["note_due"], {"name": name, "due": due})


def note_error(database: Database, name: str, error: str | None) -> None:
    with database.connection() as connection:
        connection.execute(QUERIES["note_error"], {"name": name, "error": error})


def take_request(database: Database, name: str) -> None:
    """What was wanted is being done."""
    with database.connection() as connection:
        connection.execute(QUERIES["take_request"], {"name": name})


def request(database: Database, name: str, wanted: str) -> None:
    """Want a "sync" or a "verify" now. Raises `InvalidInput` if there is no such pair."""
    _change(database, "request", name, {"wanted": wanted})


def set_paused(database: Database, name: str, *, paused: bool) -> None:
    """Begin no run of a pair, or let it begin again. Raises `InvalidInput`."""
    _change(database, "set_paused", name, {"paused": paused})


def statuses(database: Database) -> list[PairStatus]:
    """All pairs that are kept alike, by name."""
    with database.connection() as connection:
        rows = connection.execute(QUERIES["pairs"]).fetchall()
    fields = tuple(PairStatus.__dataclass_fields__)
    return [PairStatus(**dict(zip(fields, row, strict=True))) for row in rows]


def _change(database: Database, query: str, name: str, values: dict[str, object]) -> None:
    with database.connection() as connection:
        if connection.execute(QUERIES[query], values | {"name": name}).fetchone() is None:
            raise InvalidInput(f"There is no pair {name!r}; `chroma-sync pairs` lists them.")
