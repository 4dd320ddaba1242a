"""Runs a sync or a verification from beginning to end.

    open stores -> take the lease -> plan or resume -> enqueue -> wait -> verify -> report

The coordinator only plans, waits and reports; workers do the work. Killed at any point, it leaves a
ledger from which the next one goes on.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from uuid import UUID

import structlog

from coordinator.enqueue import enqueue_plan, resend_lost, retry_failed
from coordinator.lease import Lease, held_lease
from coordinator.local_workers import LocalWorkers
from coordinator.plan import plan_run
from coordinator.progress import ProgressDisplay
from coordinator.report import KEPT_FINDINGS, Report
from coordinator.runs import NewRun, Runs
from coordinator.verify import collection_counts, findings, prove_ledger
from tasks.database import Connection, Database
from tasks.errors import DatabaseUnavailable, InvalidInput, LeaseLost, Retryable
from tasks.ledger import Ledger
from tasks.settings import Settings
from tasks.stores.address import Address, parse_address
from tasks.stores.base import Store
from tasks.stores.open import open_store
from tasks.worker import DEFAULT_QUEUE, Worker
from tasks.workers import bury_dead_workers, live_workers, new_worker_id

POLL_SECONDS = 0.2
MEND_SECONDS = 2.0  # between two looks for lost tasks and dead workers
PATIENCE_SECONDS = 60.0  # how long Postgres or a store may be away

T = TypeVar("T")

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user asked for. `workers` None: in this process; 0: elsewhere; N: N processes."""

    collections: Sequence[str] = ()
    chunk_size: int
    workers: int | None = None

    def of_run(self) -> dict[str, Any]:
        """What makes an unfinished run the same as the one that is asked for now."""
        return {"collections": sorted(set(self.collections)), "chunk_size": self.chunk_size}


class Coordinator:
    """Coordinates runs between one source and one target, until it is closed."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        source: str,
        target: str,
        *,
        display: ProgressDisplay,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._settings = settings
        self._database = database
        self._ledger = Ledger(database)
        self._display = display
        self._environ = environ
        self._private_queue = f"{DEFAULT_QUEUE}-{secrets.token_hex(4)}"
        self._local: LocalWorkers | None = None
        self._lease: Lease | None = None
        self._runs = Runs(self._transaction)
        self.workers_found = 0  # local worker processes that have reported for work
        self._source_address = parse_address(source)
        self._target_address = parse_address(target)
        if self._source_address.same_store(self._target_address):
            raise InvalidInput(
                f"Source and target are the same store, {self._source_address}; "
                "give two servers, databases or directories."
            )

    @contextlib.contextmanager
    def lead(self, *, patience: float | None = None) -> Iterator[None]:
        """Hold the lease of the pair; needed to sync and to retry.

        Raises `RunBusy` if another coordinator keeps it for `patience` seconds (by default, a bit
        longer than one that was killed would keep it).
        """
        seconds = self._settings.sync_lease_seconds
        with held_lease(
            self._database,
            f"sync {self._source_address} -> {self._target_address}",
            holder=new_worker_id(),
            seconds=seconds,
            patience=seconds * 1.5 if patience is None else patience,
            waiting=lambda: self._display.say(
                "Another chroma-sync holds this source and target, or was killed; waiting."
            ),
        ) as self._lease:
            try:
                yield
            finally:
                self._lease = None

    def rest(self, seconds: float) -> None:
        """Do nothing for a while. Raises `LeaseLost` as soon as another coordinator leads."""
        if self._lease is not None:
            self._lease.wait_until_lost(seconds)

    # What users ask for ------------------------------------------------------------------------

    def sync(self, options: Options) -> Report:
        """Make the target's collections equal to the source's, and prove it."""
        with (
            self._stores(create=True) as (source, target),
            self._workers(options, source, target),
        ):
            run_id = _patiently(lambda: self._resume(options, source, target))
            if run_id is None:
                run_id = _patiently(lambda: self._plan("sync", options, source, target))
            return self._carry_out(run_id, options, source, target)

    def retry(self, run_id: UUID, options: Options) -> Report:
        """Try the failed chunks of an earlier run again, and prove it."""
        with (
            self._stores(create=False) as (source, target),
            self._workers(options, source, target),
        ):
            if not self._runs.reopen(run_id):
                raise InvalidInput(
                    f"Run {run_id} has nothing to retry, or was replaced by a later one; "
                    "use `chroma-sync sync` instead."
                )
            self._point(run_id, source, target)
            count = retry_failed(self._transaction, run_id)
            self._display.say(f"Trying {count:,} failed chunks again.")
            return self._carry_out(run_id, options, source, target)

    def verify(self, options: Options) -> Report:
        """The data proof alone; nothing is written to either store."""
        with self._stores(create=False) as (source, target), self._workers(options, source, target):
            began = time.monotonic()
            run_id = self._verify(options, source, target, parent=None)
            report = _patiently(lambda: self._report(run_id, sync_run=None, began=began))
            status = "completed" if not report.failures else "failed"
            return self._finish(run_id, replace(report, status=status))

    # What a run needs --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _stores(self, *, create: bool) -> Iterator[tuple[Store, Store]]:
        with (
            contextlib.closing(self._open(self._source_address, create=False)) as source,
            contextlib.closing(self._open(self._target_address, create=create)) as target,
        ):
            yield source, target

    def _open(self, address: Address, *, create: bool) -> Store:
        store = open_store(
            address,
            environ=self._environ,
            create=create,
            connect_timeout=self._settings.sync_connect_timeout,
            read_timeout=self._settings.sync_read_timeout,
        )
        try:
            store.check()
        except BaseException:
            store.close()
            raise
        return store

    def _transaction(self) -> contextlib.AbstractContextManager[Connection]:
        """A transaction of the leader; of anybody, for a verification, which needs no lease."""
        return self._database.transaction() if self._lease is None else self._lease.transaction()

    @contextlib.contextmanager
    def _workers(self, options: Options, source: Store, target: Store) -> Iterator[None]:
        queue_name = self._queue_name(source, target)
        if options.workers is None:
            worker = Worker(self._settings, self._database, queue_name=queue_name)
            worker.start()
            try:
                yield
            finally:
                worker.stop()
        elif options.workers == 0:
            if queue_name != DEFAULT_QUEUE:
                raise InvalidInput(
                    "A directory is served to this machine only, so workers elsewhere cannot help; "
                    "leave --workers 0 out, or run `chroma run` and give its address."
                )
            yield
        else:
            self._local = LocalWorkers(
                options.workers,
                queue_name=queue_name,
                environ={"DATABASE_URL": self._database.url},
            )
            try:
                self.workers_found = self._local.wait_until_ready(self._database)
                yield
            finally:
                self._local.stop()
                self._local = None

    # How it is done ----------------------------------------------------------------------------

    def _carry_out(self, run_id: UUID, options: Options, source: Store, target: Store) -> Report:
        began = time.monotonic()
        try:
            self._wait(run_id, "sync", options)
            _patiently(lambda: self._runs.set_status(run_id, "verifying"))
            proof_id = self._verify(options, source, target, parent=run_id)
        except BaseException:
            with contextlib.suppress(DatabaseUnavailable, LeaseLost):
                self._runs.set_status(run_id, "interrupted", "The coordinator was stopped.")
            raise
        report = _patiently(lambda: self._report(proof_id, sync_run=run_id, began=began))
        status = "completed" if report.verified else "failed"
        self._finish(proof_id, replace(report, run_id=proof_id, done=None))
        return self._finish(run_id, replace(report, status=status))

    def _plan(
        self,
        kind: str,
        options: Options,
        source: Store,
        target: Store,
        parent: UUID | None = None,
    ) -> UUID:
        run_id = self._runs.create(
            NewRun(
                kind=kind,
                parent_run_id=parent,
                source_url=str(self._source_address),
                target_url=str(self._target_address),
                source_endpoint=source.endpoint,
                target_endpoint=target.endpoint,
                queue_name=self._queue_name(source, target),
                options=options.of_run(),
            )
        )
        self._display.phase("planning")
        try:
            plan_run(
                self._transaction,
                run_id,
                source,
                target,
                options.collections,
                writing=kind == "sync",
                chunk_size=options.chunk_size,
                listed=lambda _name, count: self._display.update(count),
            )
            enqueue_plan(self._transaction, run_id)
        except BaseException as error:
            with contextlib.suppress(DatabaseUnavailable, LeaseLost):
                reason = str(error) or type(error).__name__
                self._runs.finish(run_id, status="failed", error=reason)
            raise
        return run_id

    def _resume(self, options: Options, source: Store, target: Store) -> UUID | None:
        """The newest run of this pair, if it was left unfinished and asks for the same."""
        left = self._runs.unfinished(str(self._source_address), str(self._target_address))
        if left is None:
            return None
        run_id = left.run_id
        # We hold the lease of the pair, so nobody is at work on that run.
        if left.status == "planning" or left.options != options.of_run():
            why = "was not fully planned" if left.status == "planning" else "had other options"
            self._display.say(f"Run {run_id} was left unfinished and {why}; planning anew.")
            self._runs.finish(run_id, status="failed", error="Superseded.")
            return None
        self._point(run_id, source, target)
        retry_failed(self._transaction, run_id)
        progress = self._ledger.progress(run_id)
        self._display.say(
            f"Going on with run {run_id}: "
            f"{progress.completed:,} of {progress.planned:,} chunks are done."
        )
        return run_id

    def _point(self, run_id: UUID, source: Store, target: Store) -> None:
        self._runs.point(
            run_id,
            source_endpoint=source.endpoint,
            target_endpoint=target.endpoint,
            queue_name=self._queue_name(source, target),
        )

    def _queue_name(self, source: Store, target: Store) -> str:
        """Directories are served to this machine only, so their tasks are for its own workers."""
        if source.endpoint == source.label and target.endpoint == target.label:
            return DEFAULT_QUEUE
        return self._private_queue

    def _verify(
        self,
        options: Options,
        source: Store,
        target: Store,
        *,
        parent: UUID | None,
    ) -> UUID:
        run_id = _patiently(lambda: self._plan("verify", options, source, target, parent))
        self._wait(run_id, "verifying", options)
        return run_id

    def _wait(self, run_id: UUID, phase: str, options: Options) -> None:
        """Wait until every chunk is completed or failed, and mend what got lost meanwhile."""
        progress = _patiently(lambda: self._ledger.progress(run_id))
        records = sum(progress.records.values())
        self._display.phase(phase, done=progress.records.get("completed", 0), total=records)
        next_mending = time.monotonic()
        told_alone = False
        while not progress.is_over:
            if self._lease is not None:
                self._lease.check()
            if time.monotonic() >= next_mending:
                _patiently(lambda: self._mend(run_id))
                next_mending = time.monotonic() + MEND_SECONDS
                if options.workers == 0 and not told_alone and self._is_alone():
                    told_alone = True
                    self._display.say(
                        "No worker is there; start some with `chroma-sync worker` "
                        "and the same DATABASE_URL."
                    )
            time.sleep(POLL_SECONDS)
            progress = _patiently(lambda: self._ledger.progress(run_id))
            self._display.update(progress.records.get("completed", 0), records)

    def _is_alone(self) -> bool:
        return _patiently(lambda: live_workers(self._database, DEFAULT_QUEUE)) == 0

    def _mend(self, run_id: UUID) -> None:
        bury_dead_workers(self._database)
        lost = resend_lost(self._transaction, run_id)
        if lost:
            logger.warning("tasks without a message were sent again", count=lost)
        if self._local is not None:
            self._local.replace_dead()

    def _report(self, proof_id: UUID, *, sync_run: UUID | None, began: float) -> Report:
        proof = collection_counts(self._database, proof_id)
        proof_ledger = prove_ledger(self._database, proof_id)
        failures = self._ledger.failures(proof_id)
        run_id, ledger = proof_id, proof_ledger
        if sync_run is not None:
            run_id, ledger = sync_run, prove_ledger(self._database, sync_run)
            failures = self._ledger.failures(sync_run) + failures
        verified = (
            ledger.holds
            and proof_ledger.holds
            and not failures
            and all(one.is_alike for one in proof)
        )
        return Report(
            run_id=run_id,
            status="completed",
            verified=verified,
            seconds=time.monotonic() - began,
            done=collection_counts(self._database, sync_run) if sync_run else None,
            proof=proof,
            progress=self._ledger.progress(run_id),
            ledger=ledger,
            findings=findings(self._database, proof_id, limit=KEPT_FINDINGS),
            failures=failures,
        )

    def _finish(self, run_id: UUID, report: Report) -> Report:
        error = report.failures[0]["error"] if report.failures else None
        _patiently(
            lambda: self._runs.finish(
                run_id,
                status=report.status,
                verified=report.verified,
                report=report.document(),
                error=error,
            )
        )
        return report


def _patiently(call: Callable[[], T]) -> T:
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
