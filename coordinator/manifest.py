"""Manifests: ids of a collection, frozen in Postgres in chunks.

The ids of the source come first, in its order; those that only the target has follow. So the chunks
of one manifest cover the records of either side, and offsets count through both.

The ids of both stores are staged as they stream by; what to freeze of them is Postgres's work, so
memory here does not grow with the collection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from tasks.database import Connection, load_queries

QUERIES = load_queries("manifest")
_COPIES = ("copy_source_ids", "copy_target_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Where a manifest's parts end: the source's ids, then those that only the target has."""

    first_extra: int
    end: int

    @property
    def extra(self) -> int:
        """How many ids only the target has."""
        return self.end - self.first_extra


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """How many ids each store has listed."""

    source_count: int
    target_count: int


def stage(
    connection: Connection, source: Iterable[Sequence[str]], target: Iterable[Sequence[str]]
) -> Staged:
    """Keep the ids of both stores, given in pages, until the end of the transaction."""
    connection.execute(QUERIES["prepare"])
    counts = [0, 0]
    # In turns, so that both can be listed at the same time.
    turns = deque(enumerate((iter(source), iter(target))))
    while turns:
        side, pages = turns.popleft()
        page = next(pages, None)
        if page is None:
            continue
        with connection.cursor().copy(QUERIES[_COPIES[side]]) as copy:
            copy.set_types(["int8", "bytea"])
            for number, id_ in enumerate(page, counts[side]):
                copy.write_row((number, id_.encode()))
        counts[side] += len(page)
        del page  # before the next one comes: they are most of a coordinator's memory
        turns.append((side, pages))
    connection.execute(QUERIES["analyze_staged"])
    return Staged(source_count=counts[0], target_count=counts[1])


def settle(
    connection: Connection, collection_id: UUID, *, known: Sequence[UUID], written: Sequence[UUID]
) -> None:
    """Leave out of the manifest what these runs have found alike, and is still on both sides.

    Of what the runs in `written` have not found alike (they wrote it, or failed on it), nothing is
    left out, whatever the runs in `known` say.
    """
    connection.execute(
        QUERIES["settle"],
        {"collection_id": collection_id, "known": list(known), "written": list(written)},
    )
    connection.execute(QUERIES["analyze_settled"])


def freeze(
    connection: Connection,
    run_id: UUID,
    collection_id: UUID,
    *,
    chunk_size: int,
    one_way: bool = False,
) -> Extent:
    """Write what is staged, and not settled, as chunks; `one_way`: without what only the target
    has."""
    key = {"run_id": run_id, "collection_id": collection_id, "chunk_size": chunk_size}
    first_extra = _end(connection.execute(QUERIES["freeze_source_ids"], key).fetchone(), 0)
    if one_way:
        return Extent(first_extra=first_extra, end=first_extra)
    row = connection.execute(QUERIES["freeze_extra_ids"], key | {"start": first_extra}).fetchone()
    return Extent(first_extra=first_extra, end=_end(row, first_extra))


def freeze_unproven(
    connection: Connection,
    run_id: UUID,
    collection_id: UUID,
    *,
    verification: UUID,
    chunk_size: int,
) -> Extent:
    """Write what a verification did not find alike as chunks of another run."""
    key = {
        "run_id": run_id,
        "collection_id": collection_id,
        "verification": verification,
        "chunk_size": chunk_size,
    }
    start = 0
    ends = []
    for extra in (False, True):
        row = connection.execute(
            QUERIES["freeze_unproven_ids"], key | {"extra": extra, "start": start}
        ).fetchone()
        start = _end(row, start)
        ends.append(start)
    return Extent(first_extra=ends[0], end=ends[1])


def copy(connection: Connection, run_id: UUID, other: UUID) -> None:
    """Let a run look at the same ids as another one."""
    connection.execute(QUERIES["copy_manifest"], {"run_id": run_id, "other": other})


def _end(row: tuple[int | None] | None, start: int) -> int:
    return start if row is None or row[0] is None else int(row[0])
