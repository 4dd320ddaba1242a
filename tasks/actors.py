"""The actors: a message comes in, the right function is called, the ledger is told.

There is one actor, and one queue, for each kind of run, so that a verification has a priority of
its own. A message carries the id of its task and nothing else.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID, uuid4

import dramatiq
import structlog
from dramatiq.errors import Retry
from dramatiq.middleware import Retries

from tasks.broker import PostgresBroker
from tasks.chunk import Outcome, sync_chunk, verify_chunk
from tasks.errors import (
    ChromaSyncError,
    DatabaseUnavailable,
    Permanent,
    Retryable,
    StoreOverloaded,
)
from tasks.ledger import MAX_RETRIES, Attempt, Ledger
from tasks.stores.base import Store
from tasks.stores.cache import StoreCache

# Of two waiting messages the one with the lower number is worked on first: a verification is not
# stuck behind a long copy.
PRIORITIES = {"sync": 10, "verify": 0}

# How long a worker goes on trying to reach Postgres before it gives an attempt up.
PATIENCE_SECONDS = 30.0

# How long an attempt waits for a store that is away, and how long between two looks at most.
STORE_PATIENCE_SECONDS = 60.0
MAX_STORE_PAUSE = 4.0

# Milliseconds until a message that came to a worker without a lease is delivered again.
NO_LEASE_DELAY = 1000
PAUSED_DELAY = 2000  # the same, of a run that is paused

T = TypeVar("T")

logger = structlog.get_logger(__name__)


def actor_name(kind: str) -> str:
    """The actor that works on the tasks of a kind of run."""
    return f"{kind}_chunk"


def queue_of(kind: str, queue_name: str) -> str:
    """Where the tasks of a kind of run wait, for workers on `queue_name`.

    Each kind has a queue of its own: a worker takes from all of them, so that a verification does
    not wait behind the ten thousand chunks of a copy.
    """
    return queue_name if kind == "sync" else f"{queue_name}-{kind}"


def task_message(
    kind: str, task_id: int, *, run_id: UUID, message_id: UUID, queue_name: str
) -> dramatiq.Message[Any]:
    """The message that carries a task of this run."""
    return dramatiq.Message(
        queue_name=queue_of(kind, queue_name),
        actor_name=actor_name(kind),
        args=(task_id,),
        kwargs={},
        options={"lane": str(run_id)},
        message_id=str(message_id),
    )


def retries(backoff: float) -> Retries:
    """Dramatiq's retry middleware, for faults that may pass, with jitter.

    `backoff` (seconds) is the longest first pause; it doubles with each retry and is at least half
    as long. Which fault may pass, and how often it is tried, is the ledger's to say: an attempt
    that fails for good does not raise.
    """
    return Retries(
        min_backoff=int(backoff * 1000),
        max_backoff=int(backoff * 1000 * 2**MAX_RETRIES),
        retry_when=lambda _retries, error: isinstance(error, Retryable | Retry),
    )


class Stopping(Retry):
    """The worker stops: the task goes back, at no cost to its retries."""


class ChunkWork:
    """Works on tasks in the name of one worker process."""

    def __init__(
        self, ledger: Ledger, stores: StoreCache, *, worker_id: str, stopping: threading.Event
    ) -> None:
        self._ledger = ledger
        self._stores = stores
        self._worker_id = worker_id
        self._stopping = stopping
        self._current: set[int] = set()

    def current_task(self) -> int | None:
        """A task that is being worked on just now."""
        return next(iter(self._current.copy()), None)

    def declare(self, broker: PostgresBroker, queue_name: str) -> None:
        """Make this the function of all actors of the broker."""
        for kind, priority in PRIORITIES.items():
            dramatiq.actor(
                self.perform,
                actor_name=actor_name(kind),
                queue_name=queue_of(kind, queue_name),
                priority=priority,
                broker=broker,
            )

    def perform(self, task_id: int) -> None:
        """Make one attempt on a task. Raises only what Dramatiq shall deliver again."""
        token = uuid4()
        attempt = self._patiently(
            lambda: self._ledger.claim(task_id, worker_id=self._worker_id, token=token)
        )
        if attempt is None:
            if not self._patiently(lambda: self._ledger.may_work(self._worker_id)):
                # The message must not be acknowledged: its task waits, for whoever may claim it.
                raise Retry("The lease was lost.", delay=NO_LEASE_DELAY)
            if self._patiently(lambda: self._ledger.is_held(task_id)):
                # It came just when its run was paused.
                raise Retry("The run is paused.", delay=PAUSED_DELAY)
            logger.debug("nothing to do for this delivery", task=task_id)
            return
        log = logger.bind(run=str(attempt.run_id), task=task_id)
        self._current.add(task_id)
        try:
            outcome = self._execute(attempt)
        except Stopping:
            self._ledger.release(attempt)
            raise
        except ChromaSyncError as error:
            self._attempt_failed(attempt, error, log)
        except Exception as error:
            # A fault of ours, or one that nobody has thought of. Its text may hold anything.
            log.exception("unexpected error")
            name = type(error).__name__
            self._attempt_failed(attempt, Retryable(f"Unexpected {name}; see the log."), log)
        else:
            self._attempt_done(attempt, outcome, log)
        finally:
            self._current.discard(task_id)

    def _execute(self, attempt: Attempt) -> Outcome:
        source = self._stores.get(attempt.source_endpoint)
        target = self._stores.get(attempt.target_endpoint)
        try:
            return self._work(attempt, source, target)
        except Retryable as error:
            if not self._wait_for_return(source, target, error):
                raise
        # Some of it may be written already, or even still be under way.
        again = replace(attempt, is_first=False, target_is_empty=False)
        return self._work(again, source, target)

    def _wait_for_return(self, source: Store, target: Store, error: Retryable) -> bool:
        """Whether a store was away, and both are there again.

        An outage is no fault of a chunk. If it cost retries, one that lasts half a minute would
        fail every chunk that is waiting, and the end of a shorter one would be noticed late.
        """
        deadline = time.monotonic() + STORE_PATIENCE_SECONDS
        pause = 0.0
        while True:
            try:
                source.check()
                target.check()
            except Retryable:
                if time.monotonic() > deadline:
                    return False
            except Permanent:
                return False
            else:
                return pause > 0
            if not pause:
                logger.warning("waiting for a store", reason=str(error))
            pause = min(pause * 1.5 + 0.5, MAX_STORE_PAUSE)
            self._stopping.wait(random.uniform(pause / 2, pause))
            self._checkpoint()

    def _work(self, attempt: Attempt, source: Store, target: Store) -> Outcome:
        if attempt.kind == "verify":
            return verify_chunk(
                source,
                target,
                attempt.source,
                attempt.target,
                attempt.ids,
                one_way=attempt.one_way,
                salvage=attempt.is_last,
            )
        assert attempt.target is not None, "a sync makes its target collections when it is planned"
        return sync_chunk(
            source,
            target,
            attempt.source,
            attempt.target,
            attempt.ids,
            may_delete=attempt.may_delete,
            is_first=attempt.is_first,
            target_is_empty=attempt.target_is_empty,
            salvage=attempt.is_last,
            checkpoint=self._checkpoint,
        )

    def _checkpoint(self) -> None:
        if self._stopping.is_set():
            raise Stopping("The worker stops.", delay=0)  # type: ignore[no-untyped-call]

    def _attempt_done(self, attempt: Attempt, outcome: Outcome, log: Any) -> None:
        if outcome.refused:
            count = len(outcome.refused)
            reason = f"{count} records could not be copied: {outcome.refused[0].reason}"
            self._patiently(lambda: self._ledger.fail(attempt, reason, outcome.refused))
            log.error("records refused", count=count, reason=outcome.refused[0].reason)
        elif self._patiently(lambda: self._ledger.record(attempt, outcome)):
            log.info("chunk done", seconds=round(outcome.seconds, 3), **outcome.counts())

    def _attempt_failed(self, attempt: Attempt, error: ChromaSyncError, log: Any) -> None:
        if isinstance(error, Retryable) and not attempt.is_last:
            log.warning("attempt failed, to be retried", reason=str(error))
            if self._patiently(lambda: self._ledger.retry(attempt, str(error))):
                if isinstance(error, StoreOverloaded) and error.retry_after:
                    raise Retry(str(error), delay=int(error.retry_after * 1000)) from error
                raise error
            return
        log.error("task failed", reason=str(error))
        self._patiently(lambda: self._ledger.fail(attempt, str(error)))

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call the ledger again and again while Postgres is away, for a while."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return call()
            except DatabaseUnavailable as error:
                if time.monotonic() > deadline or self._stopping.is_set():
                    raise
                logger.warning("waiting for Postgres", reason=str(error))
                self._stopping.wait(1)
