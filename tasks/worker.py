"""A worker: settings, pool, stores, broker and actors, put together and run."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import dramatiq
import structlog
from dramatiq.middleware import Middleware

from tasks.actors import ChunkWork, retries
from tasks.broker import PostgresBroker
from tasks.database import Database
from tasks.ledger import Ledger
from tasks.memory import MemoryLimit
from tasks.settings import Settings
from tasks.stores.address import parse_address
from tasks.stores.base import Store
from tasks.stores.cache import StoreCache
from tasks.stores.open import open_store
from tasks.throttle import ThrottledStore, Throttles
from tasks.workers import Heartbeat, new_worker_id

DEFAULT_QUEUE = "sync"

logger = structlog.get_logger(__name__)


class Worker:
    """Works on the tasks of one queue until it is stopped.

    The process may hold several; each has a lease of its own.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        queue_name: str = DEFAULT_QUEUE,
        watchers: Sequence[Middleware] = (),
    ) -> None:
        """`watchers`: middleware that looks on, such as metrics."""
        self.worker_id = new_worker_id()
        self._database = database
        self._settings = settings
        self._stopping = threading.Event()
        self._throttles = Throttles(database, worker_id=self.worker_id, stopping=self._stopping)
        self._stores = StoreCache(self._open_store)
        work = ChunkWork(
            Ledger(database), self._stores, worker_id=self.worker_id, stopping=self._stopping
        )
        middleware: list[Middleware] = [retries(settings.sync_retry_backoff), *watchers]
        self._broker = PostgresBroker(
            database,
            worker_id=self.worker_id,
            middleware=middleware,
            may_claim=MemoryLimit(settings.sync_worker_memory_mb).has_room,
        )
        work.declare(self._broker, queue_name)
        self._heartbeat = Heartbeat(
            database,
            worker_id=self.worker_id,
            queues=[queue_name],
            lease=settings.sync_lease_seconds,
            current_task=work.current_task,
            message_retention=settings.sync_message_retention,
        )
        self._dramatiq = dramatiq.Worker(
            self._broker, worker_timeout=50, worker_threads=settings.sync_worker_threads
        )
        # A chunk takes far longer than a claim: what one worker holds back, another could do.
        self._dramatiq.queue_prefetch = settings.sync_worker_threads

    def _open_store(self, address: str) -> Store:
        parsed = parse_address(address)
        store = open_store(
            parsed,
            environ=os.environ,
            connect_timeout=self._settings.sync_connect_timeout,
            read_timeout=self._settings.sync_read_timeout,
            # The other half reads. Where answers are slow to come, more threads write more.
            concurrent_writes=max(1, self._settings.sync_worker_threads // 2),
        )
        return ThrottledStore(store, self._throttles, server=parsed.location)

    def start(self) -> None:
        """Take the lease and begin to work. Raises `DatabaseUnavailable`."""
        self._heartbeat.start()
        self._dramatiq.start()
        logger.info("worker started", worker=self.worker_id)

    def stop(self, *, grace: float = 3.0) -> None:
        """Stop within `grace` seconds; what is not finished by then goes back to the queue.

        A write that is still under way may reach the target after that. It does no harm: it is what
        the next attempt would write.
        """
        self._stopping.set()
        self._dramatiq.stop(timeout=int(grace * 1000))
        self._broker.close()
        self._heartbeat.stop()
        self._stores.close()
        logger.info("worker stopped", worker=self.worker_id)
