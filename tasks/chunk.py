"""The work on one chunk: make the target's records equal to the source's, or compare them.

A chunk is a list of ids of either side, so one rule covers all: what the source has, the target
gets; what only the target has goes; what is alike is not touched. Doing it twice does no harm.

What a chunk leaves *unproven* is what it has not seen alike on both sides after the last write: the
records that it wrote, or found to differ. A verification looks at those, and needs to look at no
others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tasks.compare import Difference, compare, plan_writes
from tasks.digest import record_digests, to_hex, total
from tasks.records import RecordBatch
from tasks.stores.base import Collection, RecordRefusal, Store
from tasks.stores.salvage import read_what_can_be_read

# A finding is [sign, id, parts]: the sign says what a verification found for the record, the parts
# (of one that differs) say in what; of one that could not be read, why.
MISSING, EXTRA, DIFFERS, UNREADABLE = "-", "+", "*", "!"
GONE = "?"  # from both sides, since the ids were listed: no difference
Finding = tuple[str, str, tuple[str, ...]]

# A position in the chunk, and 63 bits of the digest of the source's record; 0: the source has none.
Unproven = tuple[int, int]
_DIGEST_BITS = (1 << 63) - 1

Part = tuple[Store, Collection, Sequence[str]]  # which records, of which collection


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
    unreadable: int = 0
    read_bytes: int = 0  # of what the records hold, on both sides
    written_bytes: int = 0
    # Of all that was found on either side, and of what the target has alike; `tasks.digest`.
    source_digest: str
    target_digest: str
    alike_digest: str
    findings: list[Finding] = field(default_factory=list)
    unproven: list[Unproven] = field(default_factory=list)
    refused: list[RecordRefusal] = field(default_factory=list)
    seconds: float

    def counts(self) -> dict[str, Any]:
        """The counts, and the bytes, by their names in sync_results."""
        written = ("source_count", "target_count", "added", "updated", "deleted", "unchanged")
        found = ("missing", "extra", "differing", "unreadable")
        size = ("read_bytes", "written_bytes")
        return {name: getattr(self, name) for name in (*written, *found, *size)}


def sync_chunk(
    source: Store,
    target: Store,
    source_collection: Collection,
    target_collection: Collection,
    ids: Sequence[str],
    *,
    may_delete: bool,
    is_first: bool = True,
    target_is_empty: bool = False,
    salvage: bool = False,
    checkpoint: Callable[[], None] = lambda: None,
) -> Outcome:
    """Make the target's records with these ids equal to the source's.

    `may_delete`: what the source does not have is deleted. Only where the plan counted on it: a
    record that went from the source since then is left, unproven, for the next plan to count.
    `is_first`: no attempt before this one can have written anything. A late write of one that did
    may come after everything that is read here, so then nothing counts as proven.
    `target_is_empty`: the target has none of them, so that there is nothing to read and compare
    (and a server answers 500 to a read of a collection that is just getting its first records).
    `salvage`: read what can be read, where a server fails on some of the records.
    `checkpoint` is called before each write and may raise, to stop half way; the same chunk again
    goes on from there. Records that cannot be read, or that the target refuses, are in the outcome;
    the others are written.
    """
    began = time.monotonic()
    wanted, found, unreadable = read_both(
        (source, source_collection, ids),
        (target, target_collection, [] if target_is_empty else ids),
        salvage=salvage,
    )
    difference = compare(wanted, found, space=source_collection.space)
    writes = plan_writes(wanted, found, difference)
    deletions = writes.delete if may_delete else []

    checkpoint()
    target.delete(target_collection, [*deletions, *writes.replace.ids])
    refused: list[RecordRefusal] = []
    for write, batch in (
        (target.add, writes.replace),
        (target.upsert, writes.upsert),
        (target.add, writes.add),
    ):
        checkpoint()
        refused += write(target_collection, batch)

    lost = {refusal.id for refusal in refused}
    prints = _Prints(wanted, found, difference, source_collection)
    return Outcome(
        source_count=len(wanted),
        target_count=len(found),
        added=sum(id_ not in lost for id_ in writes.add.ids),
        updated=sum(id_ not in lost for id_ in (*writes.replace.ids, *writes.upsert.ids)),
        deleted=len(deletions),
        unchanged=difference.same,
        read_bytes=wanted.content_bytes() + found.content_bytes(),
        written_bytes=writes.content_bytes(),
        source_digest=prints.source,
        target_digest=prints.target,
        alike_digest=prints.alike if is_first else to_hex(0),
        unproven=prints.unproven(ids, extra=difference.extra, doubtful=not is_first),
        refused=unreadable + refused,
        seconds=time.monotonic() - began,
    )


def verify_chunk(
    source: Store,
    target: Store,
    source_collection: Collection,
    target_collection: Collection | None,
    ids: Sequence[str],
    *,
    one_way: bool = False,
    salvage: bool = False,
) -> Outcome:
    """Compare the records with these ids on both sides; nothing is written.

    `one_way`: what only the target has is no finding. For `salvage` see `sync_chunk`.
    """
    began = time.monotonic()
    wanted, found, unreadable = read_both(
        (source, source_collection, ids),
        (target, target_collection or source_collection, ids if target_collection else []),
        salvage=salvage,
    )
    difference = compare(wanted, found, space=source_collection.space)
    extra = [] if one_way else difference.extra
    findings: list[Finding] = [
        *((MISSING, wanted.ids[row], ()) for row in difference.missing),
        *((EXTRA, found.ids[row], ()) for row in extra),
        *((DIFFERS, wanted.ids[change.source_row], change.what) for change in difference.differing),
        *((UNREADABLE, one.id, (one.reason,)) for one in unreadable),
    ]
    if len(wanted) < len(ids) and len(found) < len(ids):
        left = {*ids} - {*wanted.ids} - {*found.ids} - {one.id for one in unreadable}
        findings += ((GONE, id_, ()) for id_ in ids if id_ in left)
    prints = _Prints(wanted, found, difference, source_collection)
    return Outcome(
        source_count=len(wanted),
        target_count=len(found),
        unchanged=difference.same,
        missing=len(difference.missing),
        extra=len(extra),
        differing=len(difference.differing),
        unreadable=len({one.id for one in unreadable}),
        read_bytes=wanted.content_bytes() + found.content_bytes(),
        source_digest=prints.source,
        target_digest=prints.target,
        alike_digest=prints.alike,
        findings=findings,
        unproven=prints.unproven(ids, extra=extra, unreadable=[one.id for one in unreadable]),
        seconds=time.monotonic() - began,
    )


def read_both(
    source: Part, target: Part, *, salvage: bool
) -> tuple[RecordBatch, RecordBatch, list[RecordRefusal]]:
    """The records of both sides, without those that cannot be read on one of them.

    For `salvage` see `sync_chunk`; without it, such a record is an error.
    """
    read = read_what_can_be_read if salvage else _read_all
    # Both servers at work at the same time.
    with ThreadPoolExecutor(max_workers=1) as beside:
        reading = beside.submit(read, *target)
        wanted, unreadable = read(*source)
        found, unreadable_there = reading.result()
    unreadable += unreadable_there
    if unreadable:
        wanted, found = _without(wanted, unreadable), _without(found, unreadable)
    return wanted, found, unreadable


def _read_all(
    store: Store, collection: Collection, ids: Sequence[str]
) -> tuple[RecordBatch, list[RecordRefusal]]:
    return store.read(collection, ids), []


def _without(batch: RecordBatch, unreadable: Iterable[RecordRefusal]) -> RecordBatch:
    out = {one.id for one in unreadable}
    return batch.take([row for row, id_ in enumerate(batch.ids) if id_ not in out])


class _Prints:
    """The digests of both sides of a chunk."""

    def __init__(
        self,
        wanted: RecordBatch,
        found: RecordBatch,
        difference: Difference,
        collection: Collection,
    ) -> None:
        self._wanted = wanted
        self._found = found
        self._difference = difference
        # A cosine collection does not return the bits it was given, so they cannot be in a
        # fingerprint that two stores should agree on; `compare` looks at them with a tolerance.
        embeddings = collection.space != "cosine"
        source = record_digests(wanted, embeddings=embeddings)
        self._of_source = source if embeddings else None
        target = source if difference.identical else record_digests(found, embeddings=embeddings)
        self.source = to_hex(total(source))
        self.target = to_hex(total(target))
        unlike = {*difference.extra, *(change.target_row for change in difference.differing)}
        self.alike = to_hex(total(one for row, one in enumerate(target) if row not in unlike))

    def unproven(
        self,
        ids: Sequence[str],
        *,
        extra: Sequence[int],
        unreadable: Iterable[str] = (),
        doubtful: bool = False,
    ) -> list[Unproven]:
        """What is not alike, as positions in `ids`; `extra`: rows that only the target has.

        `doubtful`: what is alike counts as well.
        """
        differing = [change.source_row for change in self._difference.differing]
        rows = [*self._difference.missing, *differing]
        if doubtful:
            rows = list(range(len(self._wanted)))
        unknown = set(unreadable)
        if not (rows or extra or unknown):
            return []
        # With embeddings, always: one store returns the same bits each time, and a record whose
        # vector changed is one that changed.
        if self._of_source is not None:
            digests = [self._of_source[row] for row in rows]
        else:
            digests = record_digests(self._wanted.take(rows), embeddings=True)
        position = {id_: place for place, id_ in enumerate(ids)}
        return [
            *(
                (position[self._wanted.ids[row]], (digest & _DIGEST_BITS) or 1)
                for row, digest in zip(rows, digests, strict=True)
            ),
            *((position[self._found.ids[row]], 0) for row in extra),
            *((position[id_], 1) for id_ in unknown),
        ]
