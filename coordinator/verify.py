"""The two proofs: of the ledger, from Postgres alone, and of the data, by reading both stores."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

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
class CollectionCounts:
    """What the results of a run say of one collection, in records."""

    name: str
    source_count: int
    target_count: int  # before the run
    added: int
    updated: int
    deleted: int
    unchanged: int
    missing: int
    extra: int
    differing: int
    failed: int

    @property
    def is_alike(self) -> bool:
        """A verification found nothing that differs, and could read everything."""
        return not (self.missing or self.extra or self.differing or self.failed)


def prove_ledger(database: Database, run_id: UUID) -> LedgerProof:
    """The ledger proof of a run."""
    with database.connection() as connection:
        row = connection.execute(QUERIES["proof"], {"run_id": run_id}).fetchone()
    assert row is not None
    return LedgerProof(gaps=int(row[0]), duplicates=int(row[1]))


def collection_counts(database: Database, run_id: UUID) -> list[CollectionCounts]:
    """The results of a run, added up for each collection, ordered by name."""
    with database.connection() as connection:
        rows = connection.execute(QUERIES["collection_results"], {"run_id": run_id}).fetchall()
    fields = tuple(CollectionCounts.__dataclass_fields__)
    return [
        CollectionCounts(**dict(zip(fields, (row[0], *map(int, row[1:])), strict=True)))
        for row in rows
    ]


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
