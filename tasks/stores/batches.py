"""Reading and writing records in requests of a size that suits both sides, and finding the records
that a server does not take.

A read is cut so that a worker can hold a few of the answers; a large one costs the server less.

A batch that is written is cut by the server's count of records and by bytes. Bytes are first
estimated from what is big in a record (vector, document), then the encoded body is measured, and
halved if it is over.

When a server refuses a request for what it holds, the request is cut in parts until single records
are refused; those are reported and everything else is written. Chroma checks a whole request before
it writes any of it, and a record that is written twice does no harm, so a part may be sent again.
One refusal among 1000 records costs about 30 requests; if all 1000 are refused, about 1080. Nothing
short of trying a record proves that it would be refused, so that work is bounded only where there
is proof: the caller rules out vectors of a wrong dimension before anything is sent.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import orjson

from tasks.records import Metadata, RecordBatch
from tasks.stores.base import RecordRefusal
from tasks.stores.transport import ContentRefused

MAX_REQUEST_BYTES = 32 * 1024 * 1024  # Chroma's own default limit is 40 MB
_PARTS = 8
_FEW = 16  # so many that are refused together are tried one by one
_JSON_FLOAT = 20  # bytes of a float32 that is written out as a decimal number of full length

T = TypeVar("T")


class WrongDimension(Exception):
    """Every vector of the batch has another dimension than the collection."""


def require_dimension(batch: RecordBatch, dimension: int | None) -> None:
    """Raises `WrongDimension` if the collection has a dimension, and the batch another."""
    if dimension is not None and len(batch) and batch.vectors.dimension != dimension:
        raise WrongDimension(
            f"the vector has {batch.vectors.dimension} dimensions, the collection {dimension}"
        )


def read(ids: Sequence[str], fetch: Callable[[Sequence[str]], T], *, max_records: int) -> list[T]:
    """What `fetch` gives for parts of `ids`, all of about the same size, in order."""
    count = -(-len(ids) // max_records)
    cuts = [number * len(ids) // max(1, count) for number in range(count + 1)]
    return [fetch(ids[start:end]) for start, end in pairwise(cuts)]


def write(
    batch: RecordBatch,
    send: Callable[[bytes], object],
    *,
    max_records: int,
    max_bytes: int,
    base64: bool,
) -> list[RecordRefusal]:
    """Send all records; those that were refused are returned, in the batch's order.

    `send` posts one request body, and raises `ContentRefused` if the server refuses what it holds;
    every other error ends the writing and is raised.
    """
    refusals: list[RecordRefusal] = []

    def put(rows: range) -> None:
        body = encode(batch, rows, base64=base64)
        if len(body) > max_bytes:
            if len(rows) == 1:
                reason = (
                    f"the record takes {len(body) / 1e6:.1f} MB in a request, more than the "
                    f"{max_bytes / 1e6:.1f} MB that a request may hold"
                )
                refusals.append(RecordRefusal(id=batch.ids[rows[0]], reason=reason))
                return
            split(rows, 2)
            return
        try:
            send(body)
        except ContentRefused as error:
            if len(rows) == 1:
                refusals.append(RecordRefusal(id=batch.ids[rows[0]], reason=error.reason))
                return
            del body  # not held while the parts of it are encoded
            split(rows, _PARTS if len(rows) > _FEW else len(rows))

    def split(rows: range, parts: int) -> None:
        step = -(-len(rows) // parts)
        for start in range(0, len(rows), step):
            put(rows[start : start + step])

    for rows in cut(batch, max_records=max_records, max_bytes=max_bytes, base64=base64):
        put(rows)
    return refusals


def cut(batch: RecordBatch, *, max_records: int, max_bytes: int, base64: bool) -> Iterator[range]:
    """Ranges of rows that probably fit a request each: no more records, and by estimate no more
    bytes."""
    dimension = batch.vectors.dimension
    vector = 6 * dimension if base64 else _JSON_FLOAT * dimension
    start, size = 0, 0
    for row, document in enumerate(batch.documents):
        # 64 for the id and the punctuation; metadata shows when the body is measured.
        record = vector + 64 + (len(document) if document else 0)
        if row > start and (row - start == max_records or size + record > max_bytes):
            yield range(start, row)
            start, size = row, 0
        size += record
    if start < len(batch):
        yield range(start, len(batch))


def encode(batch: RecordBatch, rows: range, *, base64: bool) -> bytes:
    """The JSON body of a write of these rows."""
    part = slice(rows.start, rows.stop)
    vectors = np.ascontiguousarray(batch.embeddings[part], dtype="<f4")
    embeddings = (
        [b64encode(vector.tobytes()).decode() for vector in vectors] if base64 else vectors.tolist()
    )
    return orjson.dumps(
        {
            "ids": batch.ids[part],
            "embeddings": embeddings,
            "documents": _column(batch.documents[part]),
            "metadatas": _column(batch.metadatas[part]),
            "uris": _column(batch.uris[part]),
        }
    )


def without_removals(batch: RecordBatch) -> RecordBatch:
    """The batch without metadata values of None, which only an upsert understands."""
    if not any(metadata and None in metadata.values() for metadata in batch.metadatas):
        return batch
    metadatas: list[Metadata | None] = [
        {key: value for key, value in metadata.items() if value is not None} or None
        if metadata
        else None
        for metadata in batch.metadatas
    ]
    return RecordBatch(
        ids=batch.ids,
        vectors=batch.vectors,
        documents=batch.documents,
        metadatas=metadatas,
        uris=batch.uris,
    )


def lost_before_version_1(batch: RecordBatch) -> dict[int, str]:
    """The rows that a server before 1.0 would take and not keep whole, and why."""
    lost: dict[int, str] = {}
    for row, metadata in enumerate(batch.metadatas):
        for key, value in (metadata or {}).items():
            if isinstance(value, list | dict):
                what = "a list" if isinstance(value, list) else "an object"
                lost[row] = f"metadata {key!r} is {what}, which Chroma before 1.0 does not store"
                break
    for row in np.flatnonzero(~np.isfinite(batch.embeddings).all(axis=1)).tolist():
        lost[row] = "the vector holds NaN or infinity, which Chroma before 1.0 does not check"
    return lost


def _column(values: Sequence[object]) -> Sequence[object] | None:
    # Older servers refuse `{}`, and a column of nothing but null.
    if not any(value is not None and value != {} for value in values):
        return None
    return [value if value != {} else None for value in values]
