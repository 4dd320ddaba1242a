"""The two proofs: of the ledger, from Postgres alone, and of the data, by what was read of both
stores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from tasks import digest
from tasks.chunk import Finding
from tasks.database import Database, load_queries

QUERIES = load_queries("plan")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerProof:
    """What a run's own books say. Sound only if there is neither a gap nor a duplicate."""

    gaps: int  # chunks without a task or a result, and holes between chunks
    duplicates: int  # overlapping chunks, second results, ids that were listed twice

    @property
    def holds(self) -> bool:
        return self.gaps == 0 and self.duplicates == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionResults:
    """What the results of some runs say of one collection, in records."""

    name: str
    added: int
    updated: int
    deleted: int
    unchanged: int
    missing: int
    extra: int
    differing: int
    unreadable: int
    failed: int

    @property
    def is_alike(self) -> bool:
        """Nothing was found that differs, and everything could be read and written."""
        return not (self.missing or self.extra or self.differing or self.unreadable or self.failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """Records that a verification did not find alike, told apart by what happened to them."""

    changed: int = 0  # on the source, since the sync looked
    lost: int = 0  # on the target: not as the sync left it

    def __add__(self, other: Apart) -> Apart:
        return Apart(changed=self.changed + other.changed, lost=self.lost + other.lost)


def prove_ledger(database: Database, *run_ids: UUID) -> LedgerProof:
    """The ledger proof of a run, or of several together."""
    gaps = duplicates = 0
    with database.connection() as connection:
        for run_id in run_ids:
            row = connection.execute(QUERIES["proof"], {"run_id": run_id}).fetchone()
            assert row is not None
            gaps, duplicates = gaps + int(row[0]), duplicates + int(row[1])
    return LedgerProof(gaps=gaps, duplicates=duplicates)


def collection_results(database: Database, run_ids: Sequence[UUID]) -> list[CollectionResults]:
    """The results of these runs, added up for each collection, ordered by name."""
    with database.connection() as connection:
        rows = connection.execute(
            QUERIES["collection_results"], {"run_ids": list(run_ids)}
        ).fetchall()
    fields = tuple(CollectionResults.__dataclass_fields__)
    return [
        CollectionResults(**dict(zip(fields, (row[0], *map(int, row[1:])), strict=True)))
        for row in rows
    ]


def collection_digests(database: Database, run_id: UUID) -> dict[str, tuple[str, str]]:
    """The digests of both sides of each collection, as one verification of all records read it."""
    sums: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for name, source, target, _ in _digests(database, run_id):
        one, other = sums[name]
        sums[name] = (digest.add(one, source), digest.add(other, target))
    return _as_hex(sums)


def synced_digests(
    database: Database, sync: UUID, verification: UUID
) -> dict[str, tuple[str, str]]:
    """The same after a sync that one verification proved.

    Of the source, what the sync read. Of the target, what the sync found alike, and what the
    verification, which looked at all the rest, did.
    """
    sums: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for name, source, _, alike in _digests(database, sync):
        one, other = sums[name]
        sums[name] = (digest.add(one, source), digest.add(other, alike))
    for name, _, _, alike in _digests(database, verification):
        one, other = sums[name]
        sums[name] = (one, digest.add(other, alike))
    return _as_hex(sums)


def tell_apart(database: Database, verification: UUID, syncs: Sequence[UUID]) -> Apart:
    """What a verification of these syncs (oldest first) found: changed meanwhile, or lost?"""
    with database.connection() as connection:
        row = connection.execute(
            QUERIES["tell_apart"], {"verification": verification, "syncs": list(syncs)}
        ).fetchone()
    assert row is not None
    return Apart(changed=int(row[0]), lost=int(row[1]))


def findings(database: Database, run_id: UUID, *, limit: int) -> list[tuple[str, Finding]]:
    """What a verification found, as (collection, finding), at most `limit` of it."""
    found: list[tuple[str, Finding]] = []
    with (
        database.transaction() as connection,
        connection.cursor(name="findings") as cursor,
    ):
        cursor.execute(QUERIES["findings"], {"run_id": run_id})
        for name, rows in cursor:
            for sign, id_, parts in rows:
                if len(found) == limit:
                    return found
                found.append((name, (sign, id_, tuple(parts))))
    return found


def _as_hex(sums: Mapping[str, tuple[int, int]]) -> dict[str, tuple[str, str]]:
    """With the digest of no records for a collection that has none."""
    nothing = digest.to_hex(0)
    found = {
        name: (digest.to_hex(one), digest.to_hex(other)) for name, (one, other) in sums.items()
    }
    return defaultdict(lambda: (nothing, nothing), found)


def _digests(database: Database, run_id: UUID) -> Iterator[tuple[str, int, int, int]]:
    with (
        database.transaction() as connection,
        connection.cursor(name="digests") as cursor,
    ):
        cursor.execute(QUERIES["collection_digests"], {"run_id": run_id})
        for name, source, target, alike in cursor:
            parse = digest.from_hex
            yield name, parse(source), parse(target), parse(alike)
