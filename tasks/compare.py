"""What differs between the same records on two stores, and the writes that would end it. Pure.

Two values are the same when Chroma could have given back one for the other:

- Embeddings of `l2` and `ip` collections come back bit by bit, and are compared so.
- A cosine collection keeps the direction and the length of a vector apart: each element comes back
  within 1.2e-7 of itself, and an element near the smallest float32 within that smallest step times
  the vector's length (measured on 1.5.9). The tolerance is the next power of two above.
- A float in metadata may move by a few units in its last place each time it is written (measured:
  one number in nine with 16 or more digits, by 1 unit; 3 units for numbers below 1e-6), so floats
  within 2**-50 of each other are the same. Otherwise types count: 1, 1.0 and True differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from tasks.records import Metadata, RecordBatch
from tasks.vectors import Vectors

COSINE_TOLERANCE = 2.0**-22  # relative, per element
METADATA_TOLERANCE = 2.0**-50  # relative
_SMALLEST = 2.0**-149  # the smallest float32 above 0

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One record that is on both sides with different contents."""

    source_row: int
    target_row: int
    what: tuple[str, ...]  # "embedding", "document", "uri", "metadata:<key>", in this order


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How a target's records differ from the source's. Rows are positions in the two batches."""

    missing: list[int]  # source rows that the target has not
    extra: list[int]  # target rows that the source has not
    differing: list[Change]
    same: int  # how many records are on both sides and equal
    identical: bool  # all are, with the same digests: no float in metadata has moved either

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.differing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """What to do to the target, in this order: delete, replace, upsert, add.

    `replace` holds records that an upsert cannot express, because it keeps a document or URI that
    it does not name: they are deleted and added again.
    """

    add: RecordBatch
    upsert: RecordBatch  # a metadata value of None removes that key
    replace: RecordBatch
    delete: list[str]

    def __bool__(self) -> bool:
        return bool(len(self.add) or len(self.upsert) or len(self.replace) or self.delete)

    def content_bytes(self) -> int:
        """How much the records hold that are written."""
        return sum(one.content_bytes() for one in (self.add, self.upsert, self.replace))


def compare(source: RecordBatch, target: RecordBatch, *, space: str) -> Difference:
    """What the target lacks, has too much, or has otherwise. Ids are unique within each batch."""
    if source.ids == target.ids:
        missing: list[int] = []
        extra: list[int] = []
        source_rows = target_rows = np.arange(len(source))
    else:
        at_target = {id_: row for row, id_ in enumerate(target.ids)}
        found = [at_target.pop(id_, -1) for id_ in source.ids]
        extra = list(at_target.values())
        rows = np.array(found, dtype=np.intp)
        source_rows = np.flatnonzero(rows >= 0)
        target_rows = rows[source_rows]
        missing = np.flatnonzero(rows < 0).tolist()
        # What follows sees only the pairs, in the source's order.
        source, target = source.take(source_rows.tolist()), target.take(target_rows.tolist())

    what: dict[int, list[str]] = {}
    for pair in _vectors_differ(source.vectors, target.vectors, space):
        what.setdefault(pair, []).append("embedding")
    for name, one, other in (
        ("document", source.documents, target.documents),
        ("uri", source.uris, target.uris),
    ):
        if one != other:
            for pair, (left, right) in enumerate(zip(one, other, strict=True)):
                if left != right:
                    what.setdefault(pair, []).append(name)
    metadata_identical = _as_json(source.metadatas) == _as_json(target.metadatas)
    if not metadata_identical:
        for pair, keys in _metadatas_differ(source.metadatas, target.metadatas):
            what.setdefault(pair, []).extend(f"metadata:{key}" for key in keys)

    differing = [
        Change(
            source_row=int(source_rows[pair]),
            target_row=int(target_rows[pair]),
            what=tuple(what[pair]),
        )
        for pair in sorted(what)
    ]
    return Difference(
        missing=missing,
        extra=extra,
        differing=differing,
        same=len(source) - len(differing),
        identical=metadata_identical and not (missing or extra or differing),
    )


def plan_writes(source: RecordBatch, target: RecordBatch, difference: Difference) -> Writes:
    """The writes that make the target's records equal to the source's."""
    upsert: list[int] = []
    replace: list[int] = []
    metadatas: list[Metadata | None] = []
    for change in difference.differing:
        row, at = change.source_row, change.target_row
        document_gone = source.documents[row] is None and target.documents[at] is not None
        uri_gone = source.uris[row] is None and target.uris[at] is not None
        if document_gone or uri_gone:
            replace.append(row)
            continue
        upsert.append(row)
        wanted, present = source.metadatas[row] or {}, target.metadatas[at] or {}
        removed: Metadata = {key: None for key in present if key not in wanted}
        metadatas.append({**wanted, **removed} or None)
    changed = source.take(upsert)
    return Writes(
        add=source.take(difference.missing),
        upsert=RecordBatch(
            ids=changed.ids,
            vectors=changed.vectors,
            documents=changed.documents,
            metadatas=metadatas,
            uris=changed.uris,
        ),
        replace=source.take(replace),
        delete=[target.ids[row] for row in difference.extra],
    )


def _vectors_differ(source: Vectors, target: Vectors, space: str) -> list[int]:
    rows = source.unlike(target)
    if not rows:
        return []
    one, other = source.take(rows).array, target.take(rows).array
    if one.shape != other.shape:
        return rows
    same = np.ascontiguousarray(one).view(np.uint32) == np.ascontiguousarray(other).view(np.uint32)
    if space == "cosine" and not same.all():
        with np.errstate(invalid="ignore", over="ignore"):  # not finite: equals only its own bits
            # Exact in float32: the difference of neighbours, and a product by a power of two.
            same |= np.abs(one - other) <= np.float32(COSINE_TOLERANCE) * np.abs(one)
            rest = np.flatnonzero(~same.all(axis=1))
            left, right = one[rest].astype(np.float64), other[rest].astype(np.float64)
            length = np.sqrt(np.square(left).sum(axis=1, keepdims=True))
            allowed = COSINE_TOLERANCE * np.abs(left) + _SMALLEST * np.maximum(1.0, length)
            same[rest] |= np.abs(left - right) <= np.where(np.isfinite(allowed), allowed, 0.0)
    return [rows[place] for place in np.flatnonzero(~same.all(axis=1))]


def _as_json(value: Any) -> bytes:
    # Python's == takes 1, 1.0 and True for equal; their JSON differs.
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _metadatas_differ(
    one: list[Metadata | None], other: list[Metadata | None]
) -> list[tuple[int, list[str]]]:
    differing = []
    for pair, (left, right) in enumerate(zip(one, other, strict=True)):
        if _as_json(left) != _as_json(right):
            keys = _keys_differ(left or {}, right or {})
            if keys:
                differing.append((pair, keys))
    return differing


def _keys_differ(one: Metadata, other: Metadata) -> list[str]:
    return sorted(
        key
        for key in one.keys() | other.keys()
        if key not in one or key not in other or not _same_value(one[key], other[key])
    )


def _same_value(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        # The first test is for infinities, which no difference can be taken of.
        return one == other or bool(
            abs(one - other) <= METADATA_TOLERANCE * max(abs(one), abs(other))
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same_value, one, other))
    if isinstance(one, dict):
        return not _keys_differ(one, other)
    return bool(one == other)
