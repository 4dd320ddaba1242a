"""Does the vector index find what the collection holds? `get` can be right while the index is not.

A sample of records is queried by its own embedding, on both sides. An index is approximate, so a
record is not always its own neighbour, on the source either: what counts is a target that finds
clearly less than its source.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from coordinator.plan import Planned
from tasks.database import Database, load_queries
from tasks.errors import StoreRefused
from tasks.records import RecordBatch
from tasks.stores.base import Collection, Store
from tasks.stores.salvage import read_what_can_be_read
from tasks.stores.transport import ServerFailed

QUERIES = load_queries("manifest")
NEIGHBOURS = 10
_SIGMAS = 3  # so rarely would chance alone make a target look worse
_LEAST = 0.05  # of the sample

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexCheck:
    """How many of `sampled` records were among the nearest to their own embedding."""

    name: str
    sampled: int
    source_found: int
    target_found: int

    @property
    def source_recall(self) -> float:
        return self.source_found / self.sampled

    @property
    def target_recall(self) -> float:
        return self.target_found / self.sampled

    @property
    def is_worse(self) -> bool:
        """The target finds clearly less: by more than two samples of one index would differ."""
        spread = math.sqrt(2 * self.sampled * self.source_recall * (1 - self.source_recall))
        allowed = max(_LEAST * self.sampled, _SIGMAS * spread)
        return self.source_found - self.target_found > allowed


def check_indexes(
    database: Database,
    run_id: UUID,
    planned: Sequence[Planned],
    source: Store,
    target: Store,
    *,
    sample: int,
) -> list[IndexCheck]:
    """Query `sample` records of each collection that a run has listed, on both sides."""
    checks = []
    for one in planned:
        pair = one.pair
        if pair.target is None or not sample:
            continue
        ids = _draw(database, run_id, pair.source.id, sample)
        # What cannot be read is no business of the index, and named elsewhere.
        wanted, _ = read_what_can_be_read(source, pair.source, ids)
        found, _ = read_what_can_be_read(target, pair.target, wanted.ids)
        both = wanted.take([row for row, id_ in enumerate(wanted.ids) if id_ in {*found.ids}])
        if len(both):
            checks.append(
                IndexCheck(
                    name=pair.source.name,
                    sampled=len(both),
                    source_found=_find(source, pair.source, both),
                    target_found=_find(target, pair.target, found),
                )
            )
    return checks


def _draw(database: Database, run_id: UUID, collection_id: UUID, count: int) -> list[str]:
    key = {"run_id": run_id, "collection_id": collection_id}
    with database.connection() as connection:
        row = connection.execute(QUERIES["source_end"], key).fetchone()
        end = int(row[0]) if row else 0
        offsets = random.sample(range(end), min(count, end))
        rows = connection.execute(QUERIES["ids_at"], key | {"offsets": offsets}).fetchall()
    return [str(id_, "utf-8") for (id_,) in rows]


def _find(store: Store, collection: Collection, records: RecordBatch) -> int:
    try:
        nearest = store.query(collection, records.embeddings, NEIGHBOURS)
    except (ServerFailed, StoreRefused) as error:
        logger.warning("an index cannot be queried", reason=str(error))
        return 0
    return sum(id_ in near for id_, near in zip(records.ids, nearest, strict=True))
