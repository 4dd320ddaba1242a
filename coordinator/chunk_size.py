"""How many records a chunk shall hold, where nobody has said it.

A chunk is what is lost when a worker dies, and what is retried; and each costs a few round trips to
Postgres. So one aims at a time: long enough that the trips do not show, short enough that progress
does. A server that was slow with this collection gets smaller chunks the next time, and a chunk
never holds more than a worker should have in memory.
"""

from __future__ import annotations

import orjson

from coordinator.runs import Transaction
from tasks.database import load_queries
from tasks.stores.base import Collection, Store

QUERIES = load_queries("plan")

AIM_SECONDS = 1.5  # of one thread, for a chunk that is written whole
AIM_BYTES = 8_000_000  # of the server's answer
SMALLEST, LARGEST = 100, 5000
SPREAD = 12  # chunks that a small collection is cut into, so that several workers can help
_SAMPLE = 20
_BYTES_PER_NUMBER = 11  # of a vector, in JSON


def chunk_size(record_bytes: float, *, count: int, records_per_second: float | None = None) -> int:
    """Records a chunk. `records_per_second`: of one thread, if it is known. Pure."""
    size = AIM_BYTES / max(1.0, record_bytes)
    if records_per_second is not None:
        size = min(size, records_per_second * AIM_SECONDS)
    size = min(size, -(-count // SPREAD))
    return max(SMALLEST, min(LARGEST, int(size)))


def choose_chunk_size(
    transaction: Transaction, source: Store, target: Store, collection: Collection, count: int
) -> int:
    """The size for a collection of `count` records, from a look at some and from earlier runs."""
    if count <= SMALLEST:
        return SMALLEST
    with transaction() as connection:
        row = connection.execute(
            QUERIES["written_rate"],
            {"collection_id": collection.id, "target_url": target.label},
        ).fetchone()
    rate = float(row[0]) if row and row[0] else None
    return chunk_size(_record_bytes(source, collection), count=count, records_per_second=rate)


def _record_bytes(source: Store, collection: Collection) -> float:
    ids = next(source.ids(collection, page_size=_SAMPLE), [])
    records = source.read(collection, ids)
    if not len(records):
        return float(_BYTES_PER_NUMBER * (collection.dimension or 0))
    texts = orjson.dumps([records.ids, records.documents, records.metadatas, records.uris])
    return float(len(texts) / len(records) + _BYTES_PER_NUMBER * records.embeddings.shape[1])
