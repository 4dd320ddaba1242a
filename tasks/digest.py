"""Fingerprints of records that do not depend on their order. Pure.

A record's digest is XXH3, 128 bits, over one unambiguous encoding of its id, document, URI and
metadata, and of its vector's shortest text where the caller says that vectors are comparable. The
digest of many records is the sum of theirs modulo 2**128, so the digests of the chunks of a
collection add up to the collection's, whatever the chunks are and whoever computed them.

A sum of hashes finds every accident; it is no defence against somebody who composes records on
purpose to collide.

Equal digests prove equal records. Unequal ones call for `tasks.compare`, which knows what Chroma
itself changes in a float that is written to it.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson
from xxhash import xxh3_128_intdigest

from tasks.records import RecordBatch

_BITS = 128
_MASK = (1 << _BITS) - 1


def record_digests(batch: RecordBatch, *, embeddings: bool) -> list[int]:
    """The digest of each record, in the batch's order.

    Leave `embeddings` out for a cosine collection: its server does not give back the bits that
    were written. Digests with and without embeddings are never equal.
    """
    # JSON keeps 1, 1.0 and true apart, keeps 64-bit integers whole, and ends where it says it
    # does: the vector's text can follow without more ado.
    encode, option, hashed = orjson.dumps, orjson.OPT_SORT_KEYS, xxh3_128_intdigest
    columns = zip(batch.ids, batch.documents, batch.uris, batch.metadatas, strict=True)
    if not embeddings:
        return [hashed(encode(record, option=option)) for record in columns]
    return [
        hashed(encode(record, option=option) + text)
        for record, text in zip(columns, batch.vectors.shortest_texts(), strict=True)
    ]


def batch_digest(batch: RecordBatch, *, embeddings: bool) -> int:
    """The sum of the records' digests; 0 for no records."""
    return total(record_digests(batch, embeddings=embeddings))


def add(one: int, other: int) -> int:
    """The digest of both sets of records together."""
    return (one + other) & _MASK


def total(digests: Iterable[int]) -> int:
    """The digest of all sets of records together."""
    return sum(digests) & _MASK


def to_hex(digest: int) -> str:
    """32 lower-case hexadecimal digits."""
    return f"{digest:032x}"


def from_hex(text: str) -> int:
    """The digest that `to_hex` wrote. Raises `ValueError` on anything else."""
    if len(text) != _BITS // 4:
        raise ValueError("a digest has 32 hexadecimal digits")
    return int(text, 16)
