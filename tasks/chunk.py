"""The work on one chunk: make the target's records equal to the source's, or compare them.

A chunk is a list of ids of either side, so one rule covers all: what the source has, the target
gets; what only the target has goes; what is alike is not touched. Doing it twice does no harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.compare import compare, plan_writes
from tasks.digest import batch_digest, to_hex
from tasks.records import RecordBatch
from tasks.stores.base import Collection, RecordRefusal, Store

# A finding is [sign, id, parts]: the sign says what a verification found for the record, the parts
# (of one that differs) say in what.
MISSING, EXTRA, DIFFERS = "-", "+", "*"
Finding = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was found, and what was done, in one chunk. Counts are of records."""

    source_count: int
    target_count: int  # before anything was written
    added: int = 0
    updated: int = 0
    deleted: int = 0
    unchanged: int = 0
    missing: int = 0
    extra: int = 0
    differing: int = 0
    source_digest: str
    target_digest: str | None = None  # None where the target was not read after it was written
    findings: list[Finding] = field(default_factory=list)
    refused: list[RecordRefusal] = field(default_factory=list)
    seconds: float

    def counts(self) -> dict[str, Any]:
        """The counts by their names in sync_results."""
        names = ("source_count", "target_count", "added", "updated", "deleted", "unchanged")
        return {name: getattr(self, name) for name in (*names, "missing", "extra", "differing")}


def sync_chunk(
    source: Store,
    target: Store,
    source_collection: Collection,
    target_collection: Collection,
    ids: Sequence[str],
    *,
    target_is_empty: bool = False,
    checkpoint: Callable[[], None] = lambda: None,
) -> Outcome:
    """Make the target's records with these ids equal to the source's.

    `target_is_empty`: the target has none of them, so that there is nothing to read and compare
    (and a server answers 500 to a read of a collection that is just getting its first records).
    `checkpoint` is called between requests and may raise, to stop half way; the same chunk again
    goes on from there. Records that the target refuses are in the outcome; the others are written.
    """
    began = time.monotonic()
    wanted = source.read(source_collection, ids)
    checkpoint()
    found = target.read(target_collection, [] if target_is_empty else ids)
    difference = compare(wanted, found, space=source_collection.space)
    writes = plan_writes(wanted, found, difference)

    checkpoint()
    target.delete(target_collection, [*writes.delete, *writes.replace.ids])
    refused: list[RecordRefusal] = []
    for write, batch in (
        (target.add, writes.replace),
        (target.upsert, writes.upsert),
        (target.add, writes.add),
    ):
        checkpoint()
        refused += write(target_collection, batch)

    lost = {refusal.id for refusal in refused}
    return Outcome(
        source_count=len(wanted),
        target_count=len(found),
        added=sum(id_ not in lost for id_ in writes.add.ids),
        updated=sum(id_ not in lost for id_ in (*writes.replace.ids, *writes.upsert.ids)),
        deleted=len(writes.delete),
        unchanged=difference.same,
        source_digest=_digest(wanted, source_collection),
        refused=refused,
        seconds=time.monotonic() - began,
    )


def verify_chunk(
    source: Store,
    target: Store,
    source_collection: Collection,
    target_collection: Collection | None,
    ids: Sequence[str],
    *,
    checkpoint: Callable[[], None] = lambda: None,
) -> Outcome:
    """Compare the records with these ids on both sides; nothing is written."""
    began = time.monotonic()
    wanted = source.read(source_collection, ids)
    checkpoint()
    found = target.read(target_collection or source_collection, ids if target_collection else [])
    difference = compare(wanted, found, space=source_collection.space)
    findings: list[Finding] = [
        *((MISSING, wanted.ids[row], ()) for row in difference.missing),
        *((EXTRA, found.ids[row], ()) for row in difference.extra),
        *((DIFFERS, wanted.ids[change.source_row], change.what) for change in difference.differing),
    ]
    return Outcome(
        source_count=len(wanted),
        target_count=len(found),
        unchanged=difference.same,
        missing=len(difference.missing),
        extra=len(difference.extra),
        differing=len(difference.differing),
        source_digest=_digest(wanted, source_collection),
        target_digest=_digest(found, source_collection),
        findings=findings,
        seconds=time.monotonic() - began,
    )


def _digest(batch: RecordBatch, collection: Collection) -> str:
    # A cosine collection does not return the bits it was given, so they cannot be in a fingerprint
    # that two stores should agree on; `compare` looks at them with a tolerance.
    return to_hex(batch_digest(batch, embeddings=collection.space != "cosine"))
