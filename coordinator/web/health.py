"""Whether everything is there that a sync needs: Postgres, its schema, a leader, and the stores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pydantic import BaseModel

from coordinator.pairs import ScheduledPair
from coordinator.schedule import LEASE
from coordinator.web.shared import Shared
from tasks.database import Database, load_queries
from tasks.errors import ChromaSyncError, DatabaseUnavailable
from tasks.schema import pending_migrations
from tasks.stores.address import Address, parse_address
from tasks.stores.open import open_store

QUERIES = load_queries("web")
PATIENCE = 8.0
FRESH = 2.0  # seconds that an answer is good for, however many ask
STORE_TIMEOUT = 4.0


class Check(BaseModel):
    """One thing that was looked at."""

    name: str
    subject: str | None = None  # which of them, where there are several
    ok: bool
    detail: str | None = None  # what is wrong


class Readiness(BaseModel):
    """Ready, if all of it is."""

    ready: bool
    checks: list[Check]

    def without_details(self) -> Readiness:
        """For those who may not see more."""
        checks = [Check(name=check.name, ok=check.ok) for check in self.checks]
        return Readiness(ready=self.ready, checks=checks)


class Health:
    """Looks, for all who ask."""

    def __init__(self, database: Database, pairs: Sequence[ScheduledPair]) -> None:
        self._database = database
        addresses = {parse_address(url) for pair in pairs for url in (pair.source, pair.target)}
        self._stores = sorted(addresses, key=str)
        self._shared = Shared(self._look, patience=PATIENCE, fresh=FRESH)

    def readiness(self) -> Readiness:
        """What holds, and what does not."""
        try:
            checks = self._shared.get()
        except DatabaseUnavailable as error:
            checks = [Check(name="answer", ok=False, detail=str(error))]
        return Readiness(ready=all(check.ok for check in checks), checks=checks)

    def _look(self) -> list[Check]:
        with ThreadPoolExecutor(thread_name_prefix="ready") as pool:
            stores = [
                pool.submit(_check, "store", partial(_reach, store), subject=str(store))
                for store in self._stores
            ]
            checks = [_check("postgres", self._reach_postgres)]
            if checks[0].ok:
                checks += [
                    _check("schema", self._compare_schema),
                    _check("leader", self._find_leader),
                ]
            return checks + [store.result() for store in stores]

    def _reach_postgres(self) -> None:
        with self._database.connection() as connection:
            connection.execute("SELECT 1")

    def _compare_schema(self) -> str | None:
        if pending_migrations(self._database):
            return "The schema is not up to date: run `chroma-sync migrate`."
        return None

    def _find_leader(self) -> str | None:
        with self._database.connection() as connection:
            row = connection.execute(QUERIES["leader"], {"name": LEASE}).fetchone()
        return None if row else "No coordinator leads: none runs, or one was just lost."


def _check(name: str, look: Callable[[], str | None], *, subject: str | None = None) -> Check:
    try:
        detail = look()
    except ChromaSyncError as error:
        detail = str(error)
    return Check(name=name, subject=subject, ok=detail is None, detail=detail)


def _reach(address: Address) -> None:
    """Of a directory nothing is asked: it is served only for the time of a run."""
    if address.kind == "directory":
        return
    store = open_store(
        address,
        environ=os.environ,
        connect_timeout=STORE_TIMEOUT / 2,
        read_timeout=STORE_TIMEOUT,
    )
    try:
        store.check()
    finally:
        store.close()
