"""The Postgres broker: dramatiq-pg's table and type, with a consumer of our own.

How a message travels: `queued` -> `consumed` (claimed by a worker, which must keep its lease,
tasks/workers.py) -> `done`, or `rejected`, or `queued` again for a retry. Each claim adds one to
`deliveries`, and whatever a worker says of a message later names that delivery: what comes too
late, because the message went to somebody else meanwhile, changes nothing.

Messages may have an option `lane`: of the lanes that wait in a queue, the one of which the least is
in the workers' hands is next, so that none of them waits for another. Ours are the runs.

A NOTIFY only wakes a consumer, which polls as well: one that is lost costs a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import dramatiq
import dramatiq_pg
from dramatiq.common import iter_queue
from dramatiq.errors import ConnectionError as BrokerConnectionError
from dramatiq.middleware import Middleware

from tasks.consumer import Delivery, PostgresConsumer, Settler
from tasks.database import Connection, Database, load_queries
from tasks.errors import DatabaseUnavailable
from tasks.listener import Listener, notify

PURGE_BATCH = 5000

QUERIES = load_queries("queue")


class PostgresBroker(dramatiq_pg.PostgresBroker):  # type: ignore[misc]
    """A Dramatiq broker on dramatiq-pg's table.

    Claims are made in batches in the name of `worker_id`, whose lease somebody must keep while
    messages are consumed (`tasks.workers.Heartbeat` does); a producer needs none.

    Raises `dramatiq.errors.ConnectionError` where the interface of Dramatiq asks for it.
    """

    def __init__(
        self,
        database: Database,
        *,
        worker_id: str = "",
        middleware: Sequence[Middleware] | None = None,
        may_claim: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_claim` is asked before each claim, and again within a second after it said no."""
        # The parent takes any pool and opens nothing; none of its methods that would use the pool
        # is left.
        super().__init__(pool=database, results=False, middleware=middleware)
        self.database = database
        self.worker_id = worker_id
        self._may_claim = may_claim
        self._consumers: dict[str, PostgresConsumer] = {}
        self._lock = threading.Lock()
        self._listener: Listener | None = None
        self._settler: Settler | None = None
        self.add_middleware(_HandBack())

    # Producing --------------------------------------------------------------------------------

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue. There are no delay queues: delayed messages wait in Postgres."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = True
            self.emit_after("declare_queue", queue_name)

    def enqueue(
        self, message: dramatiq.Message[Any], *, delay: int | None = None
    ) -> dramatiq.Message[Any]:
        """Enqueue one message, to be delivered after `delay` milliseconds."""
        self.emit_before("enqueue", message, delay)
        arguments = {
            "message_id": message.message_id,
            "queue_name": message.queue_name,
            "message": message.encode().decode(),
            "delay": (delay or 0) / 1000,
            "lane": _lane(message),
        }
        if isinstance(message, Delivery):  # a retry: the message is ours, and stays one row
            query = QUERIES["requeue_delivery"]
            arguments |= {"delivery": message.number}
        else:
            query = QUERIES["enqueue_one"]
        with _connection_errors(), self.database.transaction() as connection:
            connection.execute(query, arguments)
            if not delay:
                notify(connection, {message.queue_name})
        if delay and (consumer := self._consumers.get(message.queue_name)):
            consumer.look_after(delay / 1000)
        self.emit_after("enqueue", message, delay)
        return message

    def enqueue_many(
        self, messages: Iterable[dramatiq.Message[Any]], connection: Connection
    ) -> None:
        """Enqueue messages inside the caller's transaction: they are there once it commits."""
        enqueue_many(messages, connection)

    # Consuming --------------------------------------------------------------------------------

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30000) -> PostgresConsumer:
        """The consumer of a queue. Dramatiq's `timeout` is not its own: see `PostgresConsumer`."""
        with self._lock:
            if self._settler is None:
                self._settler = Settler(self.database)
            consumer = PostgresConsumer(
                self.database,
                queue_name,
                worker_id=self.worker_id,
                prefetch=prefetch,
                settler=self._settler,
                hand_back=self.hand_back,
                may_claim=self._may_claim,
            )
            self._consumers[queue_name] = consumer
            if self._listener is None and self.database.listen:
                self._listener = Listener(self.database, lambda: list(self.queues), self.wake)
                self._listener.start()
        return consumer

    def wake(self, queue_name: str | None = None) -> None:
        """Make the consumer of a queue (or of all queues) look for messages now."""
        for name, consumer in list(self._consumers.items()):
            if queue_name in (None, name):
                consumer.wake()

    def hand_back(self, deliveries: Iterable[Delivery]) -> None:
        """Put deliveries that were not begun back, and wake other workers for them."""
        batch = list(deliveries)
        if not batch:
            return
        with _connection_errors(), self.database.transaction() as connection:
            connection.execute(
                QUERIES["hand_back"],
                {
                    "message_ids": [delivery.message_id for delivery in batch],
                    "deliveries": [delivery.number for delivery in batch],
                },
            )
            notify(connection, {delivery.queue_name for delivery in batch})

    def stop_consuming(self) -> None:
        """Claim nothing more, and hand back what the consumers hold and nobody has begun."""
        for consumer in list(self._consumers.values()):
            consumer.stop()

    def close(self) -> None:
        """Write the last acknowledgements and let go of the listening connection."""
        if self._settler is not None:
            self._settler.close()
        if self._listener is not None:
            self._listener.close()

    # What Dramatiq's brokers offer to tests -----------------------------------------------------

    def flush(self, queue_name: str) -> None:
        """Drop the messages of a queue that nobody holds."""
        with _connection_errors(), self.database.connection() as connection:
            connection.execute(QUERIES["flush"], {"queue_name": queue_name})

    def flush_all(self) -> None:
        for queue_name in self.queues:
            self.flush(queue_name)

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """Wait until a queue has no unfinished message. Raises `dramatiq.QueueJoinTimeout`."""
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        while True:
            with _connection_errors(), self.database.connection() as connection:
                row = connection.execute(
                    QUERIES["unfinished"], {"queue_name": queue_name}
                ).fetchone()
            if row == (0,):
                return
            if deadline is not None and time.monotonic() > deadline:
                raise dramatiq.QueueJoinTimeout(queue_name)
            time.sleep(0.02)


class _HandBack(Middleware):
    """When a worker stops, what it has not begun goes to others before what it has is finished."""

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        assert isinstance(broker, PostgresBroker)
        broker.stop_consuming()
        for _priority, delivery in iter_queue(worker.work_queue):
            worker.consumers[delivery.queue_name].requeue_messages([delivery])


def enqueue_many(messages: Iterable[dramatiq.Message[Any]], connection: Connection) -> None:
    """Enqueue messages inside the caller's transaction; no broker is needed for that.

    Raises psycopg's `UniqueViolation` for a message id that is in the queue already.
    """
    queue_names = set()
    for queue_name, alike in groupby(messages, key=lambda message: message.queue_name):
        queue_names.add(queue_name)
        with connection.cursor().copy(QUERIES["copy_messages"]) as copy:
            for message in alike:
                text = message.encode().decode()
                copy.write_row((message.message_id, queue_name, "queued", text, _lane(message)))
    notify(connection, queue_names)


def purge(database: Database, *, age: float) -> int:
    """Delete messages that were finished more than `age` seconds ago, in small transactions."""
    deleted = 0
    while True:
        with database.connection() as connection:
            cursor = connection.execute(QUERIES["purge"], {"age": age, "count": PURGE_BATCH})
        deleted += cursor.rowcount
        if cursor.rowcount < PURGE_BATCH:
            return deleted


def _lane(message: dramatiq.Message[Any]) -> str:
    return str(message.options.get("lane", ""))


class _connection_errors:  # noqa: N801  (a context manager that reads like a statement)
    """Raise Dramatiq's own ConnectionError for a Postgres that is away, as its worker expects."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DatabaseUnavailable):
            raise BrokerConnectionError(str(error)) from error
