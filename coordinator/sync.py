"""What users ask for: sync, copy, verify, repair, retry.

    open stores -> start workers -> carry the run out -> report

How a run is carried out is in coordinator/pipeline.py; here is what it is carried out with, and for
what.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from coordinator.combined import write_combined
from coordinator.conclude import conclude_sync, conclude_verification
from coordinator.enqueue import retry_failed
from coordinator.history import purge_history
from coordinator.index_check import IndexCheck, check_indexes
from coordinator.lease import Lease, held_lease
from coordinator.local_workers import LocalWorkers
from coordinator.options import Options
from coordinator.pipeline import Ground, Look, Pipeline, Proven, patiently
from coordinator.plan import Pair, Planned, pair_collections, refuse_deletions, refuse_mismatch
from coordinator.progress import ProgressDisplay
from coordinator.publish import discard, publish, staging_name
from coordinator.report import Report
from coordinator.runs import Runs
from tasks.database import Connection, Database
from tasks.errors import (
    ChromaSyncError,
    DatabaseUnavailable,
    InvalidInput,
    LeaseLost,
    Retryable,
    Stopped,
    TooManyDeletions,
)
from tasks.ledger import Ledger
from tasks.settings import Settings
from tasks.stores.address import Address, parse_address
from tasks.stores.base import Store
from tasks.stores.open import open_store
from tasks.worker import DEFAULT_QUEUE, Worker
from tasks.workers import new_worker_id


class Coordinator:
    """Coordinates runs between one source and one target."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        source: str,
        target: str,
        *,
        display: ProgressDisplay,
        environ: Mapping[str, str] = os.environ,
        pair: str | None = None,
        stopping: threading.Event | None = None,
        local: LocalWorkers | None = None,
        assemble: bool = False,
    ) -> None:
        """`pair`: the name that it has in a schedule. `stopping`: set to leave a run in order.
        `local`: where the options ask for local workers, who starts them. `assemble`: plan only
        once all of those have reported for work; else they start while it is planned.
        """
        self._settings = settings
        self._database = database
        self._display = display
        self._environ = environ
        self._private_queue = f"{DEFAULT_QUEUE}-{secrets.token_hex(4)}"
        self._pair = pair
        self._stopping = stopping
        self._local = local
        self._assemble = assemble
        self._lease: Lease | None = None
        self._runs = Runs(self._transaction)
        self.workers_found = 0  # local worker processes that have assembled
        self._source_address = parse_address(source)
        self._target_address = parse_address(target)
        if self._source_address.same_store(self._target_address):
            raise InvalidInput(
                f"Source and target are the same store, {self._source_address}; "
                "give two servers, databases or directories."
            )

    @contextlib.contextmanager
    def lead(self, *, patience: float | None = None) -> Iterator[None]:
        """Hold the lease of the pair; needed for everything that writes.

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
            stopping=self._stopping,
        ) as self._lease:
            try:
                yield
            finally:
                self._lease = None

    # What users ask for ------------------------------------------------------------------------

    def sync(self, options: Options) -> Report:
        """Make the target's collections equal to the source's, and prove it.

        With `one_way`, what only the target has stays. With `atomic`, each collection is filled and
        verified under another name, and then takes the place of the one that is there.
        """
        with self._at_work(options, create=True) as pipeline:
            resumed: list[UUID] = []
            run_id = patiently(lambda: self._resume(pipeline, options))
            if run_id is None:
                run_id = patiently(lambda: self._plan(pipeline, options))
            else:
                resumed = self._runs.passes(run_id)
            root = run_id
            return self._carry_out(
                root, pipeline, options, lambda: pipeline.prove(root, resumed=resumed)
            )

    def dry_run(self, options: Options) -> Report:
        """What a sync would do; nothing is written to either store."""
        began = time.monotonic()
        with self._at_work(options) as pipeline:
            run_id = self._compare(pipeline, options, writing=True, purpose="dry run")
            planned = pipeline.planner.planned(run_id)
            notes = [
                f"{one.pair.target_name}: the collection would be made."
                for one in planned
                if one.pair.target is None
            ]
            try:
                refuse_deletions(planned, options)
            except TooManyDeletions as error:
                notes.append(f"It would be refused: {error}")
            report = conclude_verification(
                self._database,
                run_id,
                planned=planned,
                notes=notes,
                seconds=time.monotonic() - began,
                kind="dry run",
            )
            return self._finish(report)

    def verify(self, options: Options, *, combined: Path | None = None) -> Report:
        """Compare every record of either side, or of a sample; nothing is written.

        `combined`: a file for a line about each record.
        """
        began = time.monotonic()
        with self._at_work(options) as pipeline:
            run_id = self._compare(pipeline, options)
            self._dismiss_workers()
            planned = pipeline.planner.planned(run_id)
            share = f"A sample of {options.sample:.3%} of the records was compared."
            report = conclude_verification(
                self._database,
                run_id,
                planned=planned,
                indexes=self._check_indexes(pipeline, run_id, planned, options),
                notes=[share] if options.sample < 1 else [],
                seconds=time.monotonic() - began,
            )
            try:
                if combined is not None:
                    write_combined(self._database, run_id, combined)
            finally:
                self._finish(report)  # after that, the ids of what is alike are gone
            return report

    def retry(self, run_id: UUID, options: Options) -> Report:
        """Try the failed chunks of an earlier run again, and prove it."""
        with self._at_work(options) as pipeline:
            if not self._is_as_planned(pipeline, run_id):
                raise InvalidInput(
                    f"A collection of run {run_id} has been deleted or made anew since; "
                    "use `chroma-sync sync` instead."
                )
            if not self._runs.reopen(run_id):
                raise InvalidInput(
                    f"Run {run_id} has nothing to retry, or was replaced by a later one; "
                    "use `chroma-sync sync` instead."
                )
            self._point(pipeline, run_id)
            count = retry_failed(self._transaction, run_id)
            self._display.say(f"Trying {count:,} failed chunks again.")

            # Time has passed since the rest of it was found alike.
            return self._carry_out(
                run_id, pipeline, options, lambda: pipeline.prove(run_id, look=Look.ALL)
            )

    def repair(self, options: Options) -> Report:
        """Compare everything, sync what is not alike, and no more, and prove it."""
        with self._at_work(options, create=True) as pipeline:
            root = pipeline.begin("sync", purpose="repair")
            try:
                verification = self._compare(pipeline, options, writing=True, parent=root)
            except BaseException as error:
                with contextlib.suppress(DatabaseUnavailable, LeaseLost):
                    reason = str(error) or type(error).__name__
                    self._runs.finish(root, status="failed", error=reason)
                raise
            self._take_findings(pipeline, options, root, verification)
            return self._carry_out(
                root, pipeline, options, lambda: pipeline.prove(root, known=[verification])
            )

    def repair_findings(self, run_id: UUID, options: Options) -> Report:
        """Sync what the (last) verification of a run did not find alike, and prove just that."""
        with self._at_work(options) as pipeline:
            verification = self._runs.newest_verification(run_id)
            if verification is None or not self._runs.has_manifest(verification):
                raise InvalidInput(
                    f"Run {run_id} has nothing to repair: it found no difference, or a later run "
                    "of the same source and target has replaced it."
                )
            root = pipeline.begin("sync", purpose="repair")
            self._take_findings(pipeline, options, root, verification)
            # What was alike then may have changed since: only what was repaired is looked at.
            return self._carry_out(
                root, pipeline, options, lambda: pipeline.prove(root, look=Look.WRITTEN)
            )

    # What it is carried out with ----------------------------------------------------------------

    @contextlib.contextmanager
    def _at_work(self, options: Options, *, create: bool = False) -> Iterator[Pipeline]:
        """Both stores open, and workers at work. `create`: the target may be made."""
        made = create and options.create_database
        with (
            contextlib.closing(self._open(self._source_address)) as source,
            contextlib.closing(self._open(self._target_address, new=create, made=made)) as target,
            self._workers(options, self._queue_name(source, target)),
        ):
            ground = Ground(
                database=self._database,
                transaction=self._transaction,
                pair=self._pair,
                check=self._check,
                source=source,
                target=target,
                queue_name=self._queue_name(source, target),
                check_workers=self._local.check if self._local else lambda: None,
                display=self._display,
            )
            yield Pipeline(ground, options)

    def _open(self, address: Address, *, new: bool = False, made: bool = False) -> Store:
        """`new`: a directory may be made; `made`: a tenant and a database."""
        store = open_store(
            address,
            environ=self._environ,
            create=new,
            connect_timeout=self._settings.sync_connect_timeout,
            read_timeout=self._settings.sync_read_timeout,
        )
        try:
            store.check(create=made)
        except BaseException:
            store.close()
            raise
        return store

    def _check(self) -> None:
        if self._stopping is not None and self._stopping.is_set():
            raise Stopped("Told to stop.")
        if self._lease is not None:
            self._lease.check()

    def _transaction(self) -> contextlib.AbstractContextManager[Connection]:
        """A transaction of the leader; of anybody, for a verification, which needs no lease."""
        return self._database.transaction() if self._lease is None else self._lease.transaction()

    @contextlib.contextmanager
    def _workers(self, options: Options, queue_name: str) -> Iterator[None]:
        if options.workers is None:
            worker = Worker(self._settings, self._database, queue_name=queue_name)
            worker.start()
            try:
                yield
            finally:
                worker.stop()
        elif self._local is not None:
            environ = {"DATABASE_URL": self._database.url}
            self._local.start(options.workers, queue_name=queue_name, environ=environ)
            try:
                if self._assemble:
                    self.workers_found = self._local.wait_until_ready(self._database)
                yield
            finally:
                self._local.close()  # they need the database, which may be closed after this
        elif queue_name == DEFAULT_QUEUE:
            yield
        else:
            raise InvalidInput(
                "A directory is served to this machine only, so workers elsewhere cannot help; "
                "leave --workers 0 out, or run `chroma run` and give its address."
            )

    def _dismiss_workers(self) -> None:
        """What is left to do is the coordinator's; the local workers stop meanwhile."""
        if self._local is not None:
            self._local.dismiss()

    def _queue_name(self, source: Store, target: Store) -> str:
        """Directories are served to this machine only, so their tasks are for its own workers."""
        if source.endpoint == source.label and target.endpoint == target.label:
            return DEFAULT_QUEUE
        return self._private_queue

    # How it is done ----------------------------------------------------------------------------

    def _plan(self, pipeline: Pipeline, options: Options) -> UUID:
        planner = pipeline.planner
        run_id = pipeline.begin("sync")
        with pipeline.planning(run_id):
            pairs = self._pairs(pipeline, options)
            if options.atomic:
                # All of it goes to a collection of its own, whatever is there.
                pairs = [replace(pair, target=None) for pair in pairs]
            refuse_mismatch(pairs)
            planner.list_all(run_id, pairs, chunk_size=options.chunk_size, one_way=options.one_way)
            refuse_deletions(planner.planned(run_id), options)
            planner.ready_target(
                run_id,
                name=(lambda name: staging_name(name, run_id)) if options.atomic else str,
            )
        return run_id

    def _resume(self, pipeline: Pipeline, options: Options) -> UUID | None:
        """The newest run of this pair, if it was left unfinished and asks for the same."""
        left = self._runs.unfinished(str(self._source_address), str(self._target_address))
        if left is None:
            return None
        run_id = left.run_id
        # We hold the lease of the pair, so nobody is at work on that run.
        why = None
        if left.status == "planning":
            why = "was not fully planned"
        elif left.options != options.of_run():
            why = "had other options"
        elif not self._is_as_planned(pipeline, run_id):
            why = "was of collections that have been deleted or made anew since"
        if why is not None:
            self._display.say(f"Run {run_id} was left unfinished and {why}; planning anew.")
            if left.options.get("atomic"):
                self._discard_staged(pipeline, run_id)
            self._runs.finish(run_id, status="failed", error="Superseded.")
            return None
        self._point(pipeline, run_id)
        retry_failed(self._transaction, run_id)
        progress = Ledger(self._database).progress(run_id)
        self._display.say(
            f"Going on with run {run_id}: "
            f"{progress.completed:,} of {progress.planned:,} chunks are done."
        )
        return run_id

    def _is_as_planned(self, pipeline: Pipeline, run_id: UUID) -> bool:
        """Both sides still have the very collections that the run was planned for."""
        ground = pipeline.ground
        sources = {collection.id for collection in ground.source.collections()}
        targets = {collection.id for collection in ground.target.collections()}
        return all(
            pair.source.id in sources and pair.target is not None and pair.target.id in targets
            for pair in pipeline.pairs(run_id)
        )

    def _point(self, pipeline: Pipeline, run_id: UUID) -> None:
        ground = pipeline.ground
        self._runs.point(
            run_id,
            source_endpoint=ground.source.endpoint,
            target_endpoint=ground.target.endpoint,
            queue_name=ground.queue_name,
        )

    def _compare(
        self,
        pipeline: Pipeline,
        options: Options,
        *,
        writing: bool = False,
        parent: UUID | None = None,
        purpose: str | None = None,
    ) -> UUID:
        """A verification of all that is asked for; `writing`: of what is to be written later."""
        pairs = self._pairs(pipeline, options)
        if writing:
            refuse_mismatch(pairs)
        return pipeline.verify(
            lambda run_id: self._list_all(pipeline, run_id, pairs, options),
            parent=parent,
            purpose=purpose,
        )

    def _pairs(self, pipeline: Pipeline, options: Options) -> list[Pair]:
        ground = pipeline.ground
        return patiently(lambda: pair_collections(ground.source, ground.target, options.selection))

    def _list_all(
        self, pipeline: Pipeline, run_id: UUID, pairs: Sequence[Pair], options: Options
    ) -> None:
        pipeline.planner.list_all(
            run_id,
            pairs,
            chunk_size=options.chunk_size,
            one_way=options.one_way,
            sample=options.sample,
        )

    def _take_findings(
        self, pipeline: Pipeline, options: Options, root: UUID, verification: UUID
    ) -> None:
        planner = pipeline.planner
        with pipeline.planning(root):
            planner.take_unproven(root, verification, chunk_size=options.chunk_size)
            planned = planner.planned(root)
            refuse_mismatch([one.pair for one in planned])
            refuse_deletions(planned, options)
            planner.ready_target(root)

    def _carry_out(
        self, run_id: UUID, pipeline: Pipeline, options: Options, prove: Callable[[], Proven]
    ) -> Report:
        began = time.monotonic()
        try:
            proven = prove()
            self._dismiss_workers()
            planner = pipeline.planner
            planned = patiently(lambda: planner.planned(run_id))
            listed = patiently(lambda: planner.planned(proven.verifications[-1]))
            indexes = patiently(lambda: self._check_indexes(pipeline, run_id, planned, options))
            report = patiently(
                lambda: conclude_sync(
                    self._database,
                    run_id,
                    proven,
                    kind=self._runs.kind(run_id),
                    planned=planned,
                    listed=listed,
                    indexes=indexes,
                    seconds=time.monotonic() - began,
                )
            )
            if options.atomic:
                staged = self._publish if report.verified else self._discard_staged
                patiently(lambda: staged(pipeline, run_id))
        except BaseException:
            with contextlib.suppress(DatabaseUnavailable, LeaseLost):
                self._runs.set_status(run_id, "interrupted", "The coordinator was stopped.")
            raise
        return self._finish(report)

    def _check_indexes(
        self, pipeline: Pipeline, run_id: UUID, planned: Sequence[Planned], options: Options
    ) -> list[IndexCheck]:
        ground = pipeline.ground
        try:
            return check_indexes(
                self._database,
                run_id,
                planned,
                ground.source,
                ground.target,
                sample=options.index_sample,
            )
        except Retryable:
            raise
        except ChromaSyncError as error:
            # A collection that cannot be used at all is named by its chunks already.
            self._display.say(f"The indexes could not be checked: {error}")
            return []

    def _publish(self, pipeline: Pipeline, run_id: UUID) -> None:
        for pair in pipeline.pairs(run_id):
            assert pair.target is not None, "a sync makes its target collections"
            publish(pipeline.ground.target, pair.target, pair.target_name, run_id)

    def _discard_staged(self, pipeline: Pipeline, run_id: UUID) -> None:
        for pair in pipeline.pairs(run_id):
            if pair.target is not None:
                discard(pipeline.ground.target, pair.target, pair.target_name, run_id)

    def _finish(self, report: Report) -> Report:
        error = report.failures[0]["error"] if report.failures else None
        patiently(
            lambda: self._runs.finish(
                report.run_id,
                status=report.status,
                verified=None if report.kind == "dry run" else report.verified,
                report=report.document(),
                error=error,
            )
        )
        with contextlib.suppress(DatabaseUnavailable):  # the next run will do
            purge_history(self._database, days=self._settings.sync_history_days)
        return report
