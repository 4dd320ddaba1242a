"""What every store can do. Adapters are checked by one contract suite, tests/contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self
from uuid import UUID

from tasks.records import Metadata, RecordBatch
from tasks.vectors import Embeddings

# A server looks at every record before a page anew: so few pages, as large as memory allows.
IDS_PAGE = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """A collection's own definition, as its server gives it. All of it is data: nothing is run."""

    id: UUID  # of this incarnation: deleted and made again, it has another id under the same name
    name: str
    dimension: int | None  # None until the first record is there
    metadata: dict[str, Any] | None
    configuration: dict[str, Any]  # configuration_json: hnsw or spann, embedding_function
    schema: dict[str, Any] | None  # None on servers that have none

    @property
    def space(self) -> str:
        """`l2`, `cosine` or `ip`: the distance of the vector index, `l2` where none is given."""
        for index in ("hnsw", "spann"):
            settings = self.configuration.get(index) or {}
            if settings.get("space"):
                return str(settings["space"])
        return str((self.metadata or {}).get("hnsw:space", "l2"))

    @classmethod
    def new(cls, name: str, *, configuration: dict[str, Any]) -> Self:
        """A definition to create a collection from: the store gives it its id."""
        return cls(
            id=UUID(int=0),
            name=name,
            dimension=None,
            metadata=None,
            configuration=configuration,
            schema=None,
        )

    def renamed(self, name: str) -> Self:
        """The same definition under another name."""
        return dataclasses.replace(self, name=name)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object that `from_json` reads."""
        return dataclasses.asdict(self) | {"id": str(self.id)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        return cls(**(fields | {"id": UUID(fields["id"])}))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRefusal:
    """A record that the store would not take, and why."""

    id: str
    reason: str


class Store(Protocol):
    """One tenant and database of a Chroma server.

    Every method may raise `StoreUnavailable`, `StoreOverloaded` or `StoreGarbled` (retry later) and
    `StoreRefused` (do not). Methods may be called from several threads. Requests have timeouts.
    """

    @property
    def label(self) -> str:
        """The address as it may be shown and stored: no secret in it."""
        ...

    @property
    def endpoint(self) -> str:
        """Where other processes reach it: the label, or where a directory is served."""
        ...

    def check(self, *, create: bool = False) -> None:
        """Reach the store, its tenant and its database; with `create`, make what is missing.

        Raises `InvalidInput` with what to do if the tenant or the database is not there, or if
        what answers is no Chroma server; `StoreRefused` if one cannot be made.
        """
        ...

    def version(self) -> str:
        """The server's version, as it gives it."""
        ...

    def collections(self) -> list[Collection]:
        """All collections, ordered by name."""
        ...

    def collection(self, name: str) -> Collection:
        """The collection of that name. Raises `CollectionNotFound`."""
        ...

    def create(self, definition: Collection) -> Collection:
        """Make a collection with this definition (its id aside).

        If one of that name is there already, it is returned as it is: a call that is repeated
        after a lost answer does no harm.
        """
        ...

    def modify(
        self,
        collection: Collection,
        *,
        name: str | None = None,
        metadata: Metadata | None = None,
    ) -> Collection:
        """Rename the collection or replace its metadata, or both in one step; `None` leaves as is.

        `metadata` takes the place of all that was there, so `{}` leaves none. The index settings
        among it (`hnsw:*`) stay as the collection has them: no server changes an index afterwards.
        Returns the definition as it is then. May be repeated. Raises `StoreRefused` for a name that
        another collection has or that the server does not allow, and `CollectionNotFound`.
        """
        ...

    def drop(self, collection: Collection) -> None:
        """Delete the collection with all its records, if the one of that name still has this id.

        One that is gone, renamed or made anew does no harm: nothing is deleted then. The name is
        looked up right before, since servers delete by name; only a rename in between could fool
        this.
        """
        ...

    def count(self, collection: Collection) -> int:
        """How many records the collection holds."""
        ...

    def ids(self, collection: Collection, *, page_size: int = IDS_PAGE) -> Iterator[list[str]]:
        """All ids in the store's order, in pages, each id once, in memory that does not grow.

        An id that is there from the first page to the last is never left out, even when others are
        deleted meanwhile; one that is added or deleted meanwhile may or may not be given.
        """
        ...

    def read(self, collection: Collection, ids: Sequence[str]) -> RecordBatch:
        """The records with these ids, in the order of `ids`; ids that are not there are left out.

        An empty `ids` gives an empty batch without a request.
        """
        ...

    def add(self, collection: Collection, batch: RecordBatch) -> list[RecordRefusal]:
        """Write records that are not there; those that are stay as they are.

        Requests stay within the server's batch size and under 32 MB. Records that the store
        refuses are returned with the reason; the others are written.
        """
        ...

    def upsert(self, collection: Collection, batch: RecordBatch) -> list[RecordRefusal]:
        """Write records whether they are there or not; otherwise as `add`.

        A metadata value of `None` removes that key; absent documents, URIs and metadata keys that
        are not named stay as they were on the store.
        """
        ...

    def delete(self, collection: Collection, ids: Sequence[str]) -> None:
        """Delete records by id; ids that are not there do no harm. Empty `ids`: no request."""
        ...

    def query(self, collection: Collection, embeddings: Embeddings, count: int) -> list[list[str]]:
        """The ids of the `count` nearest records to each row, nearest first."""
        ...

    def close(self) -> None:
        """Give back connections, and stop a server that was started for a directory."""
        ...
