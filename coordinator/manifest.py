"""Manifests: the ids of a collection, frozen in Postgres in chunks, as they stream by.

The ids of the source come first, in its order; those that only the target has follow. So the chunks
of one manifest cover all records of either side, and offsets count through both.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from uuid import UUID

from tasks.database import Connection, load_queries

QUERIES = load_queries("plan")


def freeze(
    connection: Connection,
    run_id: UUID,
    collection_id: UUID,
    ids: Iterable[bytes],
    *,
    chunk_size: int,
    start: int = 0,
) -> int:
    """Write ids (UTF-8) as chunks from offset `start` on; returns the offset after the last one."""
    stream = iter(ids)
    with connection.cursor().copy(QUERIES["copy_manifest"]) as copy:
        copy.set_types(["uuid", "uuid", "int8", "int8", "bytea[]"])
        while chunk := list(islice(stream, chunk_size)):
            end = start + len(chunk)
            copy.write_row((run_id, collection_id, start, end, chunk))
            start = end
    return start


def stage_target(connection: Connection, ids: Iterable[bytes]) -> int:
    """Keep the target's ids until the end of the transaction; returns how many there are."""
    connection.execute(QUERIES["stage_target_ids"])
    count = 0
    with connection.cursor().copy(QUERIES["copy_target_ids"]) as copy:
        copy.set_types(["bytea"])
        for id_ in ids:
            copy.write_row((id_,))
            count += 1
    connection.execute("ANALYZE sync_target_ids")
    return count


def freeze_extra(
    connection: Connection, run_id: UUID, collection_id: UUID, *, chunk_size: int, start: int
) -> None:
    """Write the staged ids that the manifest does not have as chunks from offset `start` on."""
    connection.execute(
        QUERIES["freeze_extra_ids"],
        {
            "run_id": run_id,
            "collection_id": collection_id,
            "chunk_size": chunk_size,
            "start": start,
        },
    )
