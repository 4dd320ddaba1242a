"""Carries a run out between two open stores: plan, enqueue, wait, prove, and go again.

    plan -> enqueue -> wait -> prove --all alike--> done
              ^                  |
              +---- what is not -+   (another pass)

A sync looks at every record. The verification after it lists both sides anew, and looks again at
every record that was written, has come or has gone; the rest was found alike by the sync itself,
which is the same look. What it finds is synced again: so a source that changes meanwhile is
followed until it rests, for a number of passes.

The coordinator only plans, waits and reports; workers do the work. Killed at any point, it leaves a
ledger from which the next one goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar
from uuid import UUID

import structlog

from coordinator.enqueue import enqueue_plan, resend_lost
from coordinator.options import Options
from coordinator.plan import Pair, Planned, Planner, refuse_deletions
from coordinator.progress import ProgressDisplay
from coordinator.runs import NewRun, Runs, Transaction
from coordinator.verify import Apart, collection_results, tell_apart
from tasks.database import Database
from tasks.errors import (
    DatabaseUnavailable,
    LeaseLost,
    Retryable,
    RunCancelled,
    TooManyDeletions,
)
from tasks.ledger import Ledger
from tasks.stores.base import Store
from tasks.worker import DEFAULT_QUEUE
from tasks.workers import bury_dead_workers, live_workers

POLL_SECONDS = 0.5  # at most
_SHORTEST_POLL_SECONDS = 0.0125  # a run of a few chunks is over in less than POLL_SECONDS
MEND_SECONDS = 2.0  # between two looks for lost tasks and dead workers
PATIENCE_SECONDS = 60.0  # how long Postgres or a store may be away

T = TypeVar("T")

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where runs are carried out: two open stores, a queue with workers, and the ledger."""

    database: Database
    transaction: Transaction  # of the leader; of anybody, for a verification, which needs no lease
    pair: str | None  # of a schedule
    check: Callable[[], None]  # raises if we shall not go on: the lease is lost, or we are stopped
    source: Store
    target: Store
    queue_name: str
    check_workers: Callable[[], None]  # the local ones
    display: ProgressDisplay


class Look(Enum):
    """What the verification of a sync looks at."""

    UNSETTLED = auto()  # all but what is known to be alike, and both sides listed anew
    ALL = auto()  # everything on either side
    WRITTEN = auto()  # what the sync itself looked at, and no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """How a sync went: the runs that it consists of, and what its verifications told apart."""

    look: Look
    syncs: list[UUID]  # itself, and its further passes
    verifications: list[UUID]  # the last one decides
    apart: Apart  # of what all of them found
    left: Apart  # of what the last one found
    notes: list[str]

    @property
    def has_caught_up(self) -> bool:
        """All that was not alike at the end had changed on the source since the last pass."""
        return self.left.changed > 0 and self.left.lost == 0 and not self.notes


class Pipeline:
    """Carries runs out, as the options say, on some ground."""

    def __init__(self, ground: Ground, options: Options) -> None:
        self.ground = ground
        self._options = options
        self._ledger = Ledger(ground.database)
        self._runs = Runs(ground.transaction)
        self.planner = Planner(
            ground.transaction,
            ground.source,
            ground.target,
            listed=lambda _name, count: ground.display.update(count),
        )

    def begin(self, kind: str, *, parent: UUID | None = None, purpose: str | None = None) -> UUID:
        """Open a run. `purpose`: what people call it, if not by its kind."""
        ground, options = self.ground, self._options
        new = NewRun(
            kind=kind,
            pair=ground.pair,
            parent_run_id=parent,
            one_way=options.one_way,
            source_url=ground.source.label,
            target_url=ground.target.label,
            source_endpoint=ground.source.endpoint,
            target_endpoint=ground.target.endpoint,
            queue_name=ground.queue_name,
            options=options.of_run() | ({"purpose": purpose} if purpose else {}),
        )
        return patiently(lambda: self._runs.create(new))

    @contextlib.contextmanager
    def planning(self, run_id: UUID, *, last: bool = True) -> Iterator[None]:
        """Plan a run within this, which is ended as failed if that does not work; then its tasks
        are sent (if this is the `last` of its planning)."""
        self.ground.display.phase("planning")
        try:
            yield
            if last:
                enqueue_plan(self.ground.transaction, run_id)
        except BaseException as error:
            with contextlib.suppress(DatabaseUnavailable, LeaseLost):
                reason = str(error) or type(error).__name__
                self._runs.finish(run_id, status="failed", error=reason)
            raise

    def verify(
        self,
        plan: Callable[[UUID], None],
        *,
        parent: UUID | None = None,
        purpose: str | None = None,
    ) -> UUID:
        """Carry a verification out; `plan` freezes its manifests."""

        def planned() -> UUID:
            run_id = self.begin("verify", parent=parent, purpose=purpose)
            with self.planning(run_id):
                plan(run_id)
            return run_id

        run_id = patiently(planned)
        self.wait(run_id, "verifying")
        return run_id

    def prove(
        self,
        root: UUID,
        *,
        resumed: Sequence[UUID] = (),
        known: Sequence[UUID] = (),
        look: Look = Look.UNSETTLED,
    ) -> Proven:
        """Wait for a sync, verify it, and sync again what is not alike, until all is.

        `resumed`: passes of it that a coordinator left. `known`: verifications before it, whose
        findings it has taken.
        """
        self.wait(root, "sync")
        patiently(lambda: self._runs.set_status(root, "verifying"))
        syncs, verifications, notes = [root], [], []
        seen, written = [*known, root], [root, *resumed]
        apart = left = Apart()
        while True:
            verification = self.verify(
                self._looking(look, root, known=tuple(seen), written=tuple(written)), parent=root
            )
            verifications.append(verification)
            alike = self._end_part(verification)
            left = Apart()
            if alike or self._has_failed([*syncs, verification]):
                break
            left = tell_apart(self.ground.database, verification, syncs)
            apart += left
            if len(syncs) >= self._options.max_passes:
                break
            try:
                again = self._pass(root, verification, planned_before=syncs)
            except TooManyDeletions as error:
                notes.append(str(error))
                break
            syncs.append(again)
            self.ground.display.say(
                f"Pass {len(syncs)}: {self._records(again):,} records changed meanwhile or were "
                "lost; syncing them again."
            )
            self.wait(again, "sync")
            self._end_part(again)
            seen, written = [*seen, verification, again], [again]
        return Proven(
            look=look,
            syncs=syncs,
            verifications=verifications,
            apart=apart,
            left=left,
            notes=notes,
        )

    def wait(self, run_id: UUID, phase: str) -> None:
        """Wait until every chunk is completed or failed, and mend what got lost meanwhile."""
        display = self.ground.display
        progress = patiently(lambda: self._ledger.progress(run_id))
        records = sum(progress.records.values())
        before = progress.records.get("completed", 0)
        display.phase(phase, done=before, total=records)
        began = next_mending = time.monotonic()
        told_alone = False
        pause = _SHORTEST_POLL_SECONDS
        while not progress.is_over:
            self.ground.check()
            self.ground.check_workers()
            if time.monotonic() >= next_mending:
                if patiently(lambda: self._runs.status(run_id)) == "cancelled":
                    raise RunCancelled(f"Run {run_id} was cancelled.")
                patiently(lambda: self._mend(run_id))
                next_mending = time.monotonic() + MEND_SECONDS
                if self._options.workers == 0 and not told_alone and self._is_alone():
                    told_alone = True
                    display.say(
                        "No worker is there; start some with `chroma-sync worker` "
                        "and the same DATABASE_URL."
                    )
            time.sleep(pause)
            progress = patiently(lambda: self._ledger.progress(run_id))
            completed = progress.records.get("completed", 0)
            display.update(completed, records)
            # Shorter towards the end: a small part of the time that the rate so far foretells.
            # Until there is a rate, longer each time.
            if completed > before:
                elapsed = time.monotonic() - began
                pause = (records - completed) / (completed - before) * elapsed / 16
            else:
                pause *= 1.5
            pause = min(max(pause, _SHORTEST_POLL_SECONDS), POLL_SECONDS)

    def pairs(self, run_id: UUID) -> list[Pair]:
        """The collections of a run that was planned."""
        return [one.pair for one in self.planner.planned(run_id)]

    def _looking(
        self, look: Look, root: UUID, *, known: Sequence[UUID], written: Sequence[UUID]
    ) -> Callable[[UUID], None]:
        """Plans a verification of a sync."""
        planner = self.planner
        size, one_way = self._options.chunk_size, self._options.one_way

        def plan(run_id: UUID) -> None:
            match look:
                case Look.WRITTEN:
                    planner.take_same(run_id, root)
                case Look.ALL:
                    planner.list_all(run_id, self.pairs(root), chunk_size=size, one_way=one_way)
                case Look.UNSETTLED:
                    planner.list_unsettled(
                        run_id,
                        self.pairs(root),
                        known=known,
                        written=written,
                        chunk_size=size,
                        one_way=one_way,
                    )

        return plan

    def _pass(self, root: UUID, verification: UUID, *, planned_before: Sequence[UUID]) -> UUID:
        """Sync what a verification found."""

        def planned() -> UUID:
            run_id = self.begin("sync", parent=root)
            with self.planning(run_id):
                self.planner.take_unproven(
                    run_id, verification, chunk_size=self._options.chunk_size
                )
                self._refuse_deletions([*planned_before, run_id])
            return run_id

        return patiently(planned)

    def _refuse_deletions(self, syncs: Sequence[UUID]) -> None:
        """The limit is for all passes together, of what the target had before the first."""
        first: dict[UUID, Planned] = {}
        for run_id in syncs:
            for one in self.planner.planned(run_id):
                before = first.get(one.pair.source.id)
                first[one.pair.source.id] = before.and_then(one) if before else one
        refuse_deletions(list(first.values()), self._options)

    def _records(self, run_id: UUID) -> int:
        return sum(patiently(lambda: self._ledger.progress(run_id)).records.values())

    def _has_failed(self, runs: Sequence[UUID]) -> bool:
        return any(patiently(lambda: self._ledger.progress(run)).failed for run in runs)  # noqa: B023

    def _end_part(self, run_id: UUID) -> bool:
        """End a verification or a pass; whether nothing was found, and nothing failed."""
        results = patiently(lambda: collection_results(self.ground.database, [run_id]))
        alike = all(one.is_alike for one in results)
        patiently(
            lambda: self._runs.finish(
                run_id, status="completed" if alike else "failed", verified=alike
            )
        )
        return alike

    def _is_alone(self) -> bool:
        return patiently(lambda: live_workers(self.ground.database, DEFAULT_QUEUE)) == 0

    def _mend(self, run_id: UUID) -> None:
        bury_dead_workers(self.ground.database)
        lost = resend_lost(self.ground.transaction, run_id)
        if lost:
            logger.warning("tasks without a message were sent again", count=lost)


def patiently(call: Callable[[], T]) -> T:
    """Call again and again while Postgres or a store is away, for a while.

    What is called may be repeated without harm.
    """
    deadline = 0.0
    while True:
        began = time.monotonic()
        try:
            return call()
        except Retryable as error:
            now = time.monotonic()
            if not deadline or now - began > PATIENCE_SECONDS:  # it was there in between
                deadline = now + PATIENCE_SECONDS
            if now > deadline:
                raise
            logger.warning("to be tried again", reason=str(error))
            time.sleep(1)
