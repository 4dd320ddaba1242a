"""A Chroma server, from 0.6 on, over version 2 of its HTTP API.

Not through the chromadb package: that refuses servers of other versions, sets no timeouts and turns
every vector into Python lists. Where the API does what one would not expect, a comment says so;
seen on 1.5.9 unless said otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Lock, Semaphore
from typing import Any
from urllib.parse import quote
from uuid import UUID

import numpy as np
import orjson

from tasks.errors import (
    CollectionNotFound,
    InvalidInput,
    StoreGarbled,
    StoreOverloaded,
    StoreRefused,
)
from tasks.records import Metadata, RecordBatch
from tasks.stores import answers, batches
from tasks.stores.address import Address
from tasks.stores.base import IDS_PAGE, Collection, RecordRefusal
from tasks.stores.definitions import creation_requests, modification_requests
from tasks.stores.paging import Moved, ids_in_pages
from tasks.stores.transport import (
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    ContentRefused,
    NotFound,
    Transport,
)
from tasks.vectors import Embeddings

_READ_RECORDS = 10_000  # SQLite takes 32,766 variables in one query
_READ_BYTES = 8 * 1024 * 1024  # of one answer, by what the last one took
_FIRST_READ = 100  # records of a collection that nothing is known of
_DELETE_RECORDS = 5_000
_COLLECTIONS_PAGE = 500
_NAMES_SHOWN = 5
_INCLUDE = ["embeddings", "documents", "metadatas", "uris"]


class ChromaHttpStore:
    """The `Store` of one tenant and database of a Chroma server. See tasks/stores/base.py.

    Timeouts are in seconds: to connect, and between two bytes of an answer. Of all writes that are
    asked for, no more than `concurrent_writes` are under way.
    """

    def __init__(
        self,
        address: Address,
        *,
        headers: Mapping[str, str],
        label: str | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
        max_request_bytes: int = batches.MAX_REQUEST_BYTES,
        concurrent_writes: int = 1,
    ) -> None:
        self._address = address
        self._label = label or str(address)
        self._max_request_bytes = max_request_bytes
        self._transport = Transport(
            address.location,
            label=self._label,
            headers=headers,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
        )
        self._tenant = f"/api/v2/tenants/{quote(address.tenant, safe='')}"
        self._database = f"{self._tenant}/databases/{quote(address.database, safe='')}"
        self._limits: tuple[int, bool] | None = None
        self._limits_lock = Lock()
        self._shortest: bool | None = None
        # A server has one writer, and answers all requests that wait for it at about the same time:
        # then everybody would read, while it has nothing to do. So only some of the chunks here are
        # written at a time, and the others are read meanwhile.
        self._writing = Semaphore(concurrent_writes)
        self._record_bytes: dict[UUID, float] = {}  # by collection, of an answer

    @property
    def label(self) -> str:
        return self._label

    @property
    def endpoint(self) -> str:
        """The http address that reaches this store from any process of this machine."""
        return str(self._address)

    def close(self) -> None:
        self._transport.close()

    def check(self, *, create: bool = False) -> None:
        operation = "check"
        try:
            beat = self._transport.get("/api/v2/heartbeat", operation=operation)
        except (NotFound, ContentRefused, StoreGarbled):
            beat = None
        if not isinstance(beat, dict) or "nanosecond heartbeat" not in beat:
            what = "what answers is no Chroma server of version 0.6 or later: check the address"
            raise InvalidInput(self._transport.message(operation, what))
        # The tenant first: a server may take a database for a tenant that it does not have.
        for path, name, kind in (
            (self._tenant, self._address.tenant, "tenant"),
            (self._database, self._address.database, "database"),
        ):
            if self._is_there(path, operation):
                continue
            if not create:
                what = (
                    f"the server has no {kind} {name!r}: name another with ?{kind}=NAME; on a "
                    "target, --create-database makes it"
                )
                raise InvalidInput(self._transport.message(operation, what))
            making = f"make the {kind} {name!r}"
            try:
                body = orjson.dumps({"name": name})
                self._transport.post(path.rpartition("/")[0], body, operation=making)
            except StoreRefused:
                if not self._is_there(path, operation):  # else another made it meanwhile
                    raise

    def version(self) -> str:
        return self._version("ask for the version")

    def collections(self) -> list[Collection]:
        operation = "list collections"
        found: dict[UUID, Collection] = {}
        offset = 0
        while True:
            answer = self._transport.get(
                f"{self._database}/collections?limit={_COLLECTIONS_PAGE}&offset={offset}",
                operation=operation,
            )
            with self._reading(operation):
                page = [answers.collection(item) for item in answer]
            before = len(found)
            found.update((collection.id, collection) for collection in page)
            # The second test is for a server that ignores the offset.
            if len(page) < _COLLECTIONS_PAGE or len(found) == before:
                return sorted(found.values(), key=lambda collection: collection.name)
            offset += len(page)

    def collection(self, name: str) -> Collection:
        operation = f"open collection {name!r}"
        try:
            answer = self._transport.get(
                f"{self._database}/collections/{quote(name, safe='')}", operation=operation
            )
        except (NotFound, ContentRefused, StoreOverloaded) as error:
            # Servers before 1.0 answer 400 or 500 for a name that is not there.
            names = [collection.name for collection in self.collections()]
            if name in names:
                raise
            what = f"there is no collection of that name; {_some(names)}"
            raise CollectionNotFound(self._transport.message(operation, what)) from error
        with self._reading(operation):
            return answers.collection(answer)

    def create(self, definition: Collection) -> Collection:
        operation = f"create collection {definition.name!r}"
        bodies = creation_requests(
            definition, before_version_1=self._is_before_version_1(operation)
        )
        return _first_taken(bodies, lambda body: self._create(body, operation))

    def modify(
        self,
        collection: Collection,
        *,
        name: str | None = None,
        metadata: Metadata | None = None,
    ) -> Collection:
        operation = f"change {collection.name!r}"
        bodies = modification_requests(collection, name=name, metadata=metadata)
        try:
            return _first_taken(bodies, lambda body: self._modify(collection, body, operation))
        except (StoreOverloaded, StoreRefused) as error:
            # Servers answer 500 for a name that is taken.
            if name is None or self._id_of(name) in (None, collection.id):
                raise
            what = f"another collection has the name {name!r}"
            raise StoreRefused(self._transport.message(operation, what)) from error

    def drop(self, collection: Collection) -> None:
        operation = f"delete collection {collection.name!r}"
        path = f"{self._database}/collections/{quote(collection.name, safe='')}"
        if self._id_of(collection.name) != collection.id:
            return
        try:
            self._acknowledged(self._transport.delete(path, operation=operation), operation)
        except (NotFound, ContentRefused, StoreOverloaded):
            # Another may have deleted it meanwhile; servers before 1.0 answer 400 for that.
            if self._id_of(collection.name) == collection.id:
                raise

    def count(self, collection: Collection) -> int:
        operation = f"count {collection.name!r}"
        with self._in_collection(collection):
            answer = self._transport.get(f"{self._path(collection)}/count", operation=operation)
        with self._reading(operation):
            return int(answer)

    def ids(self, collection: Collection, *, page_size: int = IDS_PAGE) -> Iterator[list[str]]:
        operation = f"list the ids of {collection.name!r}"

        def fetch(offset: int, limit: int) -> list[str]:
            answer = self._post(
                collection, "get", {"limit": limit, "offset": offset, "include": []}, operation
            )
            with self._reading(operation):
                return answers.ids(answer)

        try:
            yield from ids_in_pages(fetch, page_size=page_size)
        except Moved:
            what = "the collection changes faster than its ids can be listed"
            raise StoreGarbled(self._transport.message(operation, what)) from None

    def read(self, collection: Collection, ids: Sequence[str]) -> RecordBatch:
        operation = f"read {collection.name!r}"
        path = f"{self._path(collection)}/get"

        def fetch(part: Sequence[str]) -> RecordBatch:
            shortest = self._writes_shortest(operation)
            body = orjson.dumps({"ids": part, "include": _INCLUDE})
            with self._in_collection(collection):
                answer = self._transport.post_for_bytes(path, body, operation=operation)
            with self._reading(operation):
                batch = answers.records(
                    answer, part, shortest=shortest, parsing=lambda: self._reading(operation)
                )
            if len(batch):
                self._record_bytes[collection.id] = len(answer) / len(batch)
            return batch

        wanted = list(dict.fromkeys(ids))
        parts = []
        if collection.id not in self._record_bytes:
            parts += batches.read(wanted[:_FIRST_READ], fetch, max_records=_FIRST_READ)
            del wanted[:_FIRST_READ]
        known = self._record_bytes.get(collection.id, 0.0)
        max_records = max(1, min(_READ_RECORDS, int(_READ_BYTES / max(known, 1.0))))
        return answers.joined([*parts, *batches.read(wanted, fetch, max_records=max_records)])

    def add(self, collection: Collection, batch: RecordBatch) -> list[RecordRefusal]:
        return self._write(collection, batches.without_removals(batch), "add")

    def upsert(self, collection: Collection, batch: RecordBatch) -> list[RecordRefusal]:
        return self._write(collection, batch, "upsert")

    def delete(self, collection: Collection, ids: Sequence[str]) -> None:
        operation = f"delete records of {collection.name!r}"
        for start in range(0, len(ids), _DELETE_RECORDS):
            part = list(ids[start : start + _DELETE_RECORDS])
            answer = self._post(collection, "delete", {"ids": part}, operation)
            self._acknowledged(answer, operation)

    def query(self, collection: Collection, embeddings: Embeddings, count: int) -> list[list[str]]:
        if len(embeddings) == 0:
            return []
        operation = f"query {collection.name!r}"
        request = {
            "query_embeddings": np.asarray(embeddings, dtype=np.float32).tolist(),
            "n_results": count,
            "include": [],
        }
        answer = self._post(collection, "query", request, operation)
        with self._reading(operation):
            return answers.neighbours(answer, len(embeddings))

    def _is_there(self, path: str, operation: str) -> bool:
        """Whether there is such a tenant or database: a list of collections does not tell, since
        one of a database that is not there is empty."""
        try:
            self._transport.get(path, operation=operation)
        except (NotFound, ContentRefused):
            return False
        return True

    def _create(self, body: dict[str, Any], operation: str) -> Collection:
        answer = self._transport.post(
            f"{self._database}/collections", orjson.dumps(body), operation=operation
        )
        with self._reading(operation):
            return answers.collection(answer)

    def _modify(self, collection: Collection, body: dict[str, Any], operation: str) -> Collection:
        with self._in_collection(collection):
            answer = self._transport.put(
                self._path(collection), orjson.dumps(body), operation=operation
            )
        self._acknowledged(answer, operation)
        return self._current(replace(collection, name=body.get("new_name", collection.name)))

    def _write(self, collection: Collection, batch: RecordBatch, verb: str) -> list[RecordRefusal]:
        operation = f"{verb} to {collection.name!r}"
        batch, refusals = self._kept_whole(batch, operation)
        path = f"{self._path(collection)}/{verb}"
        max_records, base64 = self._write_limits()
        looked = False

        def send(body: bytes) -> None:
            nonlocal looked
            try:
                with self._writing:
                    answer = self._transport.post(path, body, operation=operation)
            except NotFound as error:
                raise CollectionNotFound(str(error)) from error
            except (ContentRefused, StoreOverloaded):
                # Is it the records, or the collection? Its dimension may be younger than the
                # definition; servers before 1.0 answer 400 if it is gone, 500 to a wrong dimension.
                if not looked:
                    looked = True
                    batches.require_dimension(batch, self._current(collection).dimension)
                raise
            self._acknowledged(answer, operation)

        try:
            batches.require_dimension(batch, collection.dimension)
            return refusals + batches.write(
                batch,
                send,
                max_records=max_records,
                max_bytes=self._max_request_bytes,
                base64=base64,
            )
        except batches.WrongDimension as error:
            return refusals + [RecordRefusal(id=id_, reason=str(error)) for id_ in batch.ids]

    def _kept_whole(
        self, batch: RecordBatch, operation: str
    ) -> tuple[RecordBatch, list[RecordRefusal]]:
        """The records that the server refuses or keeps whole, and those that it would spoil."""
        lost = batches.lost_before_version_1(batch)
        if not lost or not self._is_before_version_1(operation):
            return batch, []
        kept = batch.take([row for row in range(len(batch)) if row not in lost])
        return kept, [RecordRefusal(id=batch.ids[row], reason=lost[row]) for row in sorted(lost)]

    def _is_before_version_1(self, operation: str) -> bool:
        return self._version(operation).startswith("0.")

    def _writes_shortest(self, operation: str) -> bool:
        """Whether numbers come in the shortest form: before 1.0, they come as float64."""
        if self._shortest is None:
            self._shortest = re.match(r"[1-9]\d*\.", self._version(operation)) is not None
        return self._shortest

    def _version(self, operation: str) -> str:
        return str(self._transport.get("/api/v2/version", operation=operation))

    def _write_limits(self) -> tuple[int, bool]:
        """The most records in a request, and whether embeddings may be sent as base64."""
        with self._limits_lock:
            if self._limits is None:
                operation = "ask for the limits"
                answer = self._transport.get("/api/v2/pre-flight-checks", operation=operation)
                with self._reading(operation):
                    records = int(answer["max_batch_size"])
                    base64 = answer.get("supports_base64_encoding") is True
                    self._limits = max(1, records), base64
            return self._limits

    def _post(self, collection: Collection, verb: str, body: dict[str, Any], operation: str) -> Any:
        with self._in_collection(collection):
            return self._transport.post(
                f"{self._path(collection)}/{verb}", orjson.dumps(body), operation=operation
            )

    def _path(self, collection: Collection) -> str:
        return f"{self._database}/collections/{collection.id}"

    def _id_of(self, name: str) -> UUID | None:
        try:
            return self.collection(name).id
        except CollectionNotFound:
            return None

    def _current(self, collection: Collection) -> Collection:
        """Its definition as it is now. Raises `CollectionNotFound` if it is gone, or if there is
        another of that name."""
        current = self.collection(collection.name)
        if current.id != collection.id:
            what = f"the collection {collection.id} was deleted, another has its name now"
            operation = f"open collection {collection.name!r}"
            raise CollectionNotFound(self._transport.message(operation, what))
        return current

    @contextmanager
    def _in_collection(self, collection: Collection) -> Iterator[None]:
        try:
            yield
        except NotFound as error:
            raise CollectionNotFound(str(error)) from error
        except ContentRefused:
            self._current(collection)  # servers before 1.0 answer 400 if it is gone
            raise

    def _acknowledged(self, answer: Any, operation: str) -> None:
        """What a write is answered with: an object, or of servers before 1.0 true or null."""
        if answer is None or answer is True or (isinstance(answer, dict) and "error" not in answer):
            return
        what = f"the answer is not what the API promises: {answer!r:.80}"
        raise StoreGarbled(self._transport.message(operation, what))

    @contextmanager
    def _reading(self, operation: str) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"the answer is not what the API promises: {error!r}"
            raise StoreGarbled(self._transport.message(operation, what)) from error


def _first_taken(
    bodies: Sequence[dict[str, Any]], send: Callable[[dict[str, Any]], Collection]
) -> Collection:
    """What the first of them gives: a server of another version or kind does not know all."""
    *attempts, last = bodies
    for attempt in attempts:
        with suppress(ContentRefused):
            return send(attempt)
    return send(last)


def _some(names: Sequence[str]) -> str:
    if not names:
        return "the database holds none"
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return f"there are: {', '.join(names[:_NAMES_SHOWN])}{more}"
