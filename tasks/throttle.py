"""How much a server is to bear, from all workers together; it can be changed while they work.

The limits, and what has been let through, are in Postgres, so they hold however many workers there
are, and a server without limits costs one look at a small table every few seconds.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.database import Database, load_queries
from tasks.records import Metadata, RecordBatch
from tasks.stores.base import IDS_PAGE, Collection, RecordRefusal, Store
from tasks.vectors import Embeddings

QUERIES = load_queries("throttle")
LOOK_SECONDS = 2.0  # so long does a change of a limit take to reach all workers
_SLOT_SECONDS = 0.05  # between two tries for a place among the requests in flight


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one server; None: no limit."""

    records_per_second: float | None = None
    requests_in_flight: int | None = None


class Throttles:
    """The limits of all servers, as one worker keeps to them."""

    def __init__(self, database: Database, *, worker_id: str, stopping: threading.Event) -> None:
        self._database = database
        self._worker_id = worker_id
        self._stopping = stopping
        self._lock = threading.Lock()
        self._limits: dict[str, Limits] = {}
        self._looked = -LOOK_SECONDS

    def of(self, server: str) -> Limits:
        """The limits of a server, as of a few seconds ago."""
        with self._lock:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                self._limits = read_limits(self._database)
                self._looked = time.monotonic()
            return self._limits.get(server, Limits())

    @contextlib.contextmanager
    def request(self, server: str, records: int) -> Iterator[None]:
        """Wait until a request with so many records may be sent, and count it while it is."""
        limits = self.of(server)
        if limits.records_per_second is not None and records:
            self._wait_for_rate(server, records)
        if limits.requests_in_flight is None:
            yield
            return
        with self._slot(server):
            yield

    def _wait_for_rate(self, server: str, records: int) -> None:
        limits = self.of(server)
        with self._database.connection() as connection:
            row = connection.execute(
                QUERIES["reserve"], {"store": server, "records": records}
            ).fetchone()
        until = time.monotonic() + (float(row[0]) if row else 0.0)
        # A limit that is changed frees those who wait by the old one.
        while (left := until - time.monotonic()) > 0 and self.of(server) == limits:
            if self._stopping.wait(min(left, LOOK_SECONDS)):
                return

    @contextlib.contextmanager
    def _slot(self, server: str) -> Iterator[None]:
        key = {"store": server, "worker_id": self._worker_id}
        while True:
            with self._database.transaction() as connection:
                connection.execute(QUERIES["lock_limit"], key)
                row = connection.execute(QUERIES["take_slot"], key).fetchone()
            if row is not None or self._stopping.is_set():
                break
            if self.of(server).requests_in_flight is None:
                break
            self._stopping.wait(_SLOT_SECONDS)
        try:
            yield
        finally:
            if row is not None:
                with self._database.connection() as connection:
                    connection.execute(QUERIES["leave_slot"], {"id": row[0]})


class ThrottledStore:
    """A store whose records pass a throttle."""

    def __init__(self, store: Store, throttles: Throttles, *, server: str) -> None:
        self._store = store
        self._throttles = throttles
        self._server = server

    @property
    def label(self) -> str:
        return self._store.label

    @property
    def endpoint(self) -> str:
        return self._store.endpoint

    def check(self, *, create: bool = False) -> None:
        self._store.check(create=create)

    def version(self) -> str:
        return self._store.version()

    def collections(self) -> list[Collection]:
        return self._store.collections()

    def collection(self, name: str) -> Collection:
        return self._store.collection(name)

    def create(self, definition: Collection) -> Collection:
        return self._store.create(definition)

    def modify(
        self,
        collection: Collection,
        *,
        name: str | None = None,
        metadata: Metadata | None = None,
    ) -> Collection:
        return self._store.modify(collection, name=name, metadata=metadata)

    def drop(self, collection: Collection) -> None:
        self._store.drop(collection)

    def count(self, collection: Collection) -> int:
        return self._store.count(collection)

    def ids(self, collection: Collection, *, page_size: int = IDS_PAGE) -> Iterator[list[str]]:
        return self._store.ids(collection, page_size=page_size)

    def read(self, collection: Collection, ids: Sequence[str]) -> RecordBatch:
        if not ids:
            return self._store.read(collection, ids)
        with self._throttles.request(self._server, len(ids)):
            return self._store.read(collection, ids)

    def add(self, collection: Collection, batch: RecordBatch) -> list[RecordRefusal]:
        if not len(batch):
            return []
        with self._throttles.request(self._server, len(batch)):
            return self._store.add(collection, batch)

    def upsert(self, collection: Collection, batch: RecordBatch) -> list[RecordRefusal]:
        if not len(batch):
            return []
        with self._throttles.request(self._server, len(batch)):
            return self._store.upsert(collection, batch)

    def delete(self, collection: Collection, ids: Sequence[str]) -> None:
        if ids:
            with self._throttles.request(self._server, len(ids)):
                self._store.delete(collection, ids)

    def query(self, collection: Collection, embeddings: Embeddings, count: int) -> list[list[str]]:
        return self._store.query(collection, embeddings, count)

    def close(self) -> None:
        self._store.close()


def read_limits(database: Database) -> dict[str, Limits]:
    """The limits that are set, by server."""
    with database.connection() as connection:
        rows = connection.execute(QUERIES["limits"]).fetchall()
    return {
        server: Limits(records_per_second=rate, requests_in_flight=in_flight)
        for server, rate, in_flight in rows
    }


def set_limits(database: Database, server: str, limits: Limits) -> None:
    """Set the limits of a server anew; none at all: it is not throttled any more."""
    with database.connection() as connection:
        connection.execute(
            QUERIES["set_limits"],
            {
                "store": server,
                "records_per_second": limits.records_per_second,
                "requests_in_flight": limits.requests_in_flight,
            },
        )
