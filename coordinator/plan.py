"""Plans a run: which collections, do they fit, and which ids they have.

All collections are looked at before the first is touched, so that one that cannot work is refused
while nothing has been written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

import orjson
from psycopg.types.json import Json

from coordinator import manifest
from coordinator.runs import Transaction
from tasks.database import load_queries
from tasks.errors import CollectionMismatch
from tasks.stores.base import Collection, Store

QUERIES = load_queries("plan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A collection of the source, and the target's of the same name, if there is one."""

    source: Collection
    target: Collection | None


def pair_collections(source: Store, target: Store, names: Sequence[str]) -> list[Pair]:
    """The collections of these names (of all, if none is given) on both sides.

    Raises `CollectionNotFound` for a name that the source does not have.
    """
    wanted = (
        [source.collection(name) for name in dict.fromkeys(names)]
        if names
        else source.collections()
    )
    existing = {collection.name: collection for collection in target.collections()}
    return [Pair(source=collection, target=existing.get(collection.name)) for collection in wanted]


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
                "Delete or rename the target's collection, or leave this one out with --collection."
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


def plan_run(
    transaction: Transaction,
    run_id: UUID,
    source: Store,
    target: Store,
    names: Sequence[str],
    *,
    writing: bool,
    chunk_size: int,
    listed: Callable[[str, int], None],
) -> None:
    """Freeze the manifests of a run.

    For one that is `writing`, target collections that cannot fit are refused first, and those that
    are not there are made; otherwise nothing is written to either store.
    """
    pairs = pair_collections(source, target, names)
    if writing:
        refuse_mismatch(pairs)
    for pair in pairs:
        if writing and pair.target is None:
            # Made now, from the source's own definition: workers only ever write records.
            pair = Pair(source=pair.source, target=target.create(pair.source))
        _freeze(transaction, run_id, source, target, pair, chunk_size=chunk_size, listed=listed)


def _freeze(
    transaction: Transaction,
    run_id: UUID,
    source: Store,
    target: Store,
    pair: Pair,
    *,
    chunk_size: int,
    listed: Callable[[str, int], None],
) -> None:
    """One collection, in one transaction. `listed` is told how many ids have been seen so far."""

    def counted(store: Store, collection: Collection) -> Iterable[bytes]:
        seen = 0
        for page in store.ids(collection):
            seen += len(page)
            listed(collection.name, seen)
            yield from (id_.encode() for id_ in page)

    with transaction() as connection:
        end = manifest.freeze(
            connection,
            run_id,
            pair.source.id,
            counted(source, pair.source),
            chunk_size=chunk_size,
        )
        target_count = 0
        if pair.target is not None:
            target_count = manifest.stage_target(connection, counted(target, pair.target))
            manifest.freeze_extra(
                connection, run_id, pair.source.id, chunk_size=chunk_size, start=end
            )
        connection.execute(
            QUERIES["add_collection"],
            {
                "run_id": run_id,
                "collection_id": pair.source.id,
                "collection_name": pair.source.name,
                "source_definition": _json(pair.source),
                "target_definition": _json(pair.target) if pair.target else None,
                "source_count": end,
                "target_count": target_count,
            },
        )


def _json(collection: Collection) -> Json:
    return Json(collection.to_json(), dumps=orjson.dumps)
