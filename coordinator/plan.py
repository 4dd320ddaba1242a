"""Plans a run: which collections, do they fit, and which ids they have.

All collections are looked at before the first is touched, so that one that cannot work is refused
while nothing has been written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TypeVar
from uuid import UUID

import orjson
from psycopg.types.json import Json

from coordinator import manifest
from coordinator.chunk_size import choose_chunk_size
from coordinator.options import Options, Selection
from coordinator.runs import Transaction
from tasks.database import Connection, load_queries
from tasks.errors import CollectionMismatch, CollectionNotFound, TooManyDeletions
from tasks.stores.base import Collection, Store
from tasks.stores.definitions import losses, metadata_to_write

QUERIES = load_queries("plan")

T = TypeVar("T")
Listed = Callable[[str, int], None]  # (collection, ids seen so far)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A collection of the source, and the target's that it goes to, if there is one."""

    source: Collection
    target: Collection | None
    target_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A collection of a run, as it was planned."""

    pair: Pair
    source_count: int
    target_count: int
    extra: int  # records that only the target has
    losses: list[str]

    def and_then(self, later: Planned) -> Planned:
        """Both together: the deletions of both, of the most that the target had."""
        return replace(
            self,
            extra=self.extra + later.extra,
            target_count=max(self.target_count, later.target_count),
        )


def pair_collections(source: Store, target: Store, selection: Selection) -> list[Pair]:
    """The collections that are taken, on both sides.

    Raises `CollectionNotFound` for a name that the source does not have.
    """
    if selection.names and not selection.include:
        available = [source.collection(name) for name in dict.fromkeys(selection.names)]
    else:
        available = source.collections()
        for name in selection.names:
            if name not in {collection.name for collection in available}:
                raise CollectionNotFound(f"{source.label}: there is no collection {name!r}.")
    existing = {collection.name: collection for collection in target.collections()}
    return [
        Pair(source=collection, target=existing.get(name), target_name=name)
        for collection in selection.choose(available)
        for name in (selection.target_name(collection.name),)
    ]


def refuse_mismatch(pairs: Sequence[Pair]) -> None:
    """Raise `CollectionMismatch`, with both definitions, for a target that cannot fit."""
    for pair in pairs:
        if pair.target is None:
            continue
        spaces_differ = pair.source.space != pair.target.space
        dimensions = {pair.source.dimension, pair.target.dimension} - {None}
        if spaces_differ or len(dimensions) > 1:
            raise CollectionMismatch(
                f"Collection {pair.source.name!r} does not fit the target's: "
                f"source has {describe(pair.source)}; target has {describe(pair.target)}. "
                "Delete or rename the target's collection, leave this one out with --exclude, "
                "or replace it as a whole with --atomic."
            )


def refuse_deletions(planned: Sequence[Planned], options: Options) -> None:
    """Raise `TooManyDeletions` if a collection would lose more records than it may."""
    limit = options.max_delete
    for one in [] if options.one_way else planned:
        if one.extra > limit.of(one.target_count):
            raise TooManyDeletions(
                f"Collection {one.pair.source.name!r}: {one.extra:,} of the target's "
                f"{one.target_count:,} records are not on the source and would be deleted, more "
                f"than --max-delete {limit.text} allows. Nothing was deleted; use `copy` to keep "
                f"them, or --max-delete {one.extra}."
            )


def describe(collection: Collection) -> str:
    """Space, dimension and index settings in one line."""
    dimension = "no" if collection.dimension is None else str(collection.dimension)
    settings = {
        name: value
        for index in ("hnsw", "spann")
        for name, value in (collection.configuration.get(index) or {}).items()
        if name != "space" and value is not None
    }
    listed = "".join(f", {name} {value}" for name, value in sorted(settings.items()))
    return f"space {collection.space}, {dimension} dimensions{listed}"


def drawn(id_: str, run_id: UUID, share: float) -> bool:
    """Whether a record is in this run's sample: for both stores alike, by chance for each run."""
    dice = int.from_bytes(blake2b(id_.encode(), digest_size=8, key=run_id.bytes).digest(), "little")
    return dice < share * 2**64


def ahead(items: Iterator[T], executor: Executor) -> Iterator[T]:
    """The same, each asked for while the one before it is used; the first is asked for at once.

    No more than two are held at a time.
    """
    coming = executor.submit(next, items, None)

    def given() -> Iterator[T]:
        nonlocal coming
        while (item := coming.result()) is not None:
            coming = executor.submit(next, items, None)
            yield item
            del item  # the user has done with it

    return given()


class Planner:
    """Freezes the manifests of runs between two stores, and readies the target for them."""

    def __init__(
        self, transaction: Transaction, source: Store, target: Store, *, listed: Listed
    ) -> None:
        self._transaction = transaction
        self._source = source
        self._target = target
        self._listed = listed

    def list_all(
        self,
        run_id: UUID,
        pairs: Sequence[Pair],
        *,
        chunk_size: int | None,
        one_way: bool,
        sample: float = 1.0,
    ) -> None:
        """Plan to look at all records of either side, or at a share of them."""
        for pair in pairs:
            self._freeze(
                run_id, pair, chunk_size=chunk_size, one_way=one_way, sample=sample, known=()
            )

    def list_unsettled(
        self,
        run_id: UUID,
        pairs: Sequence[Pair],
        *,
        known: Sequence[UUID],
        written: Sequence[UUID],
        chunk_size: int | None,
        one_way: bool,
    ) -> None:
        """Plan to look at what the runs in `known` have not found alike, or `written` have touched
        since; and at what has come or gone on either side."""
        for pair in pairs:
            self._freeze(
                run_id, pair, chunk_size=chunk_size, one_way=one_way, known=known, written=written
            )

    def take_unproven(self, run_id: UUID, verification: UUID, *, chunk_size: int | None) -> None:
        """Plan to look at what a verification did not find alike."""
        for planned in self.planned(verification):
            size = chunk_size or self._chunk_size(planned.pair, planned.source_count)
            with self._transaction() as connection:
                extent = manifest.freeze_unproven(
                    connection,
                    run_id,
                    planned.pair.source.id,
                    verification=verification,
                    chunk_size=size,
                )
                counts = manifest.Staged(
                    source_count=planned.source_count, target_count=planned.target_count
                )
                self._add(connection, run_id, planned.pair, counts, extent)

    def take_same(self, run_id: UUID, other: UUID) -> None:
        """Plan to look at the same records as another run."""
        with self._transaction() as connection:
            manifest.copy(connection, run_id, other)

    def planned(self, run_id: UUID) -> list[Planned]:
        """The collections of a run that has been planned."""
        with self._transaction() as connection:
            rows = connection.execute(QUERIES["planned_collections"], {"run_id": run_id}).fetchall()
        return [
            Planned(
                pair=Pair(
                    source=Collection.from_json(source),
                    target=Collection.from_json(target) if target else None,
                    target_name=name,
                ),
                source_count=source_count,
                target_count=target_count,
                extra=extra,
                losses=lost or [],
            )
            for _, source, target, name, source_count, target_count, extra, lost in rows
        ]

    def ready_target(self, run_id: UUID, *, name: Callable[[str], str] = str) -> None:
        """Make the target collections that are not there, from the source's own definitions.

        Workers only ever write records. What a target cannot hold of a definition is noted.
        `name` turns the name that a collection shall have in the end into that it has till then.
        """
        for planned in self.planned(run_id):
            source, target = planned.pair.source, planned.pair.target
            if target is None:
                target = self._target.create(replace(source, name=name(planned.pair.target_name)))
            metadata = metadata_to_write(source, target)
            if metadata is not None:
                target = self._target.modify(target, metadata=metadata)
            with self._transaction() as connection:
                connection.execute(
                    QUERIES["set_target"],
                    {
                        "run_id": run_id,
                        "collection_id": source.id,
                        "target_definition": _json(target),
                        "losses": Json(losses(source, target), dumps=orjson.dumps),
                    },
                )

    def _freeze(
        self,
        run_id: UUID,
        pair: Pair,
        *,
        chunk_size: int | None,
        one_way: bool,
        sample: float = 1.0,
        known: Sequence[UUID] = (),
        written: Sequence[UUID] = (),
    ) -> None:
        """One collection, in one transaction."""

        def taken(pages: Iterator[list[str]]) -> Iterator[list[str]]:
            seen = 0
            for page in pages:
                seen += len(page)
                self._listed(pair.source.name, seen)
                yield page if sample >= 1 else [id_ for id_ in page if drawn(id_, run_id, sample)]
                del page  # as in `ahead`

        with self._transaction() as connection, ThreadPoolExecutor(max_workers=2) as executor:
            # Both sides are listed at the same time, a page ahead of what is staged.
            source, target = (
                taken(ahead(store.ids(collection), executor)) if collection else ()
                for store, collection in (
                    (self._source, pair.source),
                    (self._target, pair.target),
                )
            )
            counts = manifest.stage(connection, source, target)
            if known:
                manifest.settle(connection, pair.source.id, known=known, written=written)
            extent = manifest.freeze(
                connection,
                run_id,
                pair.source.id,
                chunk_size=chunk_size or self._chunk_size(pair, counts.source_count),
                one_way=one_way,
            )
            self._add(connection, run_id, pair, counts, extent)

    def _chunk_size(self, pair: Pair, count: int) -> int:
        return choose_chunk_size(self._transaction, self._source, self._target, pair.source, count)

    def _add(
        self,
        connection: Connection,
        run_id: UUID,
        pair: Pair,
        counts: manifest.Staged,
        extent: manifest.Extent,
    ) -> None:
        connection.execute(
            QUERIES["add_collection"],
            {
                "run_id": run_id,
                "collection_id": pair.source.id,
                "collection_name": pair.source.name,
                "target_name": pair.target_name,
                "source_definition": _json(pair.source),
                "target_definition": _json(pair.target) if pair.target else None,
                "source_count": counts.source_count,
                "target_count": counts.target_count,
                "first_extra": extent.first_extra,
                "manifest_end": extent.end,
            },
        )


def _json(collection: Collection) -> Json:
    return Json(collection.to_json(), dumps=orjson.dumps)
