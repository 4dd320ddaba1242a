"""Does the vector index find what the collection holds? `get` can be right while the index is not.

A sample of records is queried by its own embedding, on both sides. An index is approximate, so a
record is not always its own neighbour, on the source either: what counts is a target that finds
clearly less than its source. Small samples of two equal indexes differ by much now and then, so a
target that looks worse is asked again, for a larger one, and that decides.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

import structlog

from coordinator.plan import Planned
from tasks.chunk import read_both
from tasks.database import Database, load_queries
from tasks.errors import StoreRefused
from tasks.records import RecordBatch
from tasks.stores.base import Collection, Store
from tasks.stores.transport import ServerFailed

QUERIES = load_queries("manifest")
NEIGHBOURS = 10
_QUERIES = 25  # of one request; a server works on several requests at a time
_REQUESTS = 4  # to each side at a time
_SUSPICIOUS = 2.0  # standard deviations: chance alone does that in one run of fifty
_WORSE = 3.0  # and this hardly ever, on top of that
_DECIDING = 1000  # records at least, in the sample that decides
_LEAST = 0.05  # of the sample: two indexes of the same records differ by less

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
    def looks_worse(self) -> bool:
        """The target finds less than chance explains in most runs."""
        return self._lacks_more_than(_SUSPICIOUS)

    @property
    def is_worse(self) -> bool:
        """The target finds clearly less."""
        return self._lacks_more_than(_WORSE)

    def _lacks_more_than(self, deviations: float) -> bool:
        """Standard deviations of the difference of two such samples of equally good indexes."""
        recall = (self.source_recall + self.target_recall) / 2
        deviation = math.sqrt(2 * self.sampled * recall * (1 - recall))
        lacking = self.source_found - self.target_found
        return lacking > max(_LEAST * self.sampled, deviations * deviation)


def check_indexes(
    database: Database,
    run_id: UUID,
    planned: Sequence[Planned],
    source: Store,
    target: Store,
    *,
    sample: int,
) -> list[IndexCheck]:
    """Query `sample` records of each collection that a run has listed, on both sides, or more."""
    checks = []
    with ThreadPoolExecutor(max_workers=2 * _REQUESTS) as executor:
        for one in planned:
            if one.pair.target is None or not sample:
                continue
            for size in (sample, max(sample, _DECIDING)):
                ids = _draw(database, run_id, one.pair.source.id, size)
                check = _check(executor, source, one.pair.source, target, one.pair.target, ids)
                if check is None or not check.looks_worse:
                    break
            if check is not None:
                checks.append(check)
    return checks


def _check(
    executor: Executor,
    source: Store,
    source_collection: Collection,
    target: Store,
    target_collection: Collection,
    ids: Sequence[str],
) -> IndexCheck | None:
    """One collection; None if none of these records is on both sides."""
    # What cannot be read is no business of the index, and named elsewhere.
    wanted, found, _ = read_both(
        (source, source_collection, ids), (target, target_collection, ids), salvage=True
    )
    wanted, found = _those_of(wanted, found), _those_of(found, wanted)
    if not len(wanted):
        return None
    # Both servers at work at the same time.
    at_source = _ask(executor, source, source_collection, wanted)
    at_target = _ask(executor, target, target_collection, found)
    return IndexCheck(
        name=source_collection.name,
        sampled=len(wanted),
        source_found=_found(wanted, at_source),
        target_found=_found(found, at_target),
    )


def _those_of(batch: RecordBatch, other: RecordBatch) -> RecordBatch:
    """The records that the other batch has too."""
    there = {*other.ids}
    return batch.take([row for row, id_ in enumerate(batch.ids) if id_ in there])


def _draw(database: Database, run_id: UUID, collection_id: UUID, count: int) -> list[str]:
    key = {"run_id": run_id, "collection_id": collection_id}
    with database.connection() as connection:
        row = connection.execute(QUERIES["source_end"], key).fetchone()
        end = int(row[0]) if row else 0
        offsets = random.sample(range(end), min(count, end))
        rows = connection.execute(QUERIES["ids_at"], key | {"offsets": offsets}).fetchall()
    return [str(id_, "utf-8") for (id_,) in rows]


def _ask(
    executor: Executor, store: Store, collection: Collection, records: RecordBatch
) -> list[Future[list[list[str]]]]:
    """What is nearest to each of these records, in parts that are on their way."""
    return [
        executor.submit(
            store.query, collection, records.embeddings[start : start + _QUERIES], NEIGHBOURS
        )
        for start in range(0, len(records), _QUERIES)
    ]


def _found(records: RecordBatch, asked: Sequence[Future[list[list[str]]]]) -> int:
    """How many of these records are among the nearest to themselves."""
    try:
        nearest = [near for part in asked for near in part.result()]
    except (ServerFailed, StoreRefused) as error:
        logger.warning("an index cannot be queried", reason=str(error))
        return 0
    return sum(id_ in near for id_, near in zip(records.ids, nearest, strict=True))
