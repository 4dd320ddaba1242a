"""The consumer of one queue, and what a worker holds of it until it is settled."""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import dramatiq
import structlog
from dramatiq.broker import Consumer, MessageProxy

from tasks.database import Database, load_queries
from tasks.errors import DatabaseUnavailable

POLL_SECONDS = 1.0
STOPPED_PAUSE = 0.01
READ_AHEAD = 0.1  # seconds of work that a consumer of short messages holds
MAX_HELD = 500
SETTLE_PAUSE = 0.005  # how long acknowledgements gather before they are written together
SETTLE_BATCH = 1000

QUERIES = load_queries("queue")

logger = structlog.get_logger(__name__)


class Delivery(MessageProxy):
    """A message as it was handed to this worker: it knows which delivery it is."""

    def __init__(self, message: dramatiq.Message[Any], number: int) -> None:
        super().__init__(message)  # type: ignore[no-untyped-call]
        self.number = number


class PostgresConsumer(Consumer):
    """Hands out the messages of one queue.

    It holds at most `prefetch` unfinished messages, or as many as were finished in the last
    READ_AHEAD seconds, if that is more: a claim is a round trip, and messages that take no time
    must not wait for one each. Long ones are never held back from other workers so.

    It looks at the queue when it is woken, when a message that it sent itself is due, and every
    POLL_SECONDS; workers with nothing to do cost Postgres next to nothing. Nor do they cost the
    machine much: Dramatiq would be told many times a second that there is no message, so that its
    thread sees when it shall end; but `stop` tells of that, and POLL_SECONDS are enough.
    """

    def __init__(
        self,
        database: Database,
        queue_name: str,
        *,
        worker_id: str,
        prefetch: int,
        settler: Settler,
        hand_back: Callable[[Iterable[Delivery]], None],
        may_claim: Callable[[], bool] = lambda: True,
    ) -> None:
        self._database = database
        self._may_claim = may_claim
        self._worker_id = worker_id
        self._hand_back = hand_back
        self._queue_name = queue_name
        self._prefetch = prefetch
        self._settler = settler
        self._ready: deque[Delivery] = deque()  # claimed, not yet handed out
        self._unfinished = 0  # claimed, and neither acknowledged nor handed back
        self._finishes: deque[float] = deque(maxlen=MAX_HELD)
        self._changed = threading.Condition()
        self._look_at = 0.0  # by the monotonic clock: claim then, if there is room
        self._due: list[float] = []  # a heap of further such times
        self._claim_in_doubt = False
        self._stopped = False

    def __next__(self) -> Delivery | None:
        deadline = time.monotonic() + POLL_SECONDS
        while True:
            with self._changed:
                if self._ready:
                    return self._ready.popleft()
                if self._stopped:
                    # It is asked again and again until the worker has finished what it has.
                    self._changed.wait(STOPPED_PAUSE)
                    return None
                free = self._free()
                now = time.monotonic()
                until_look = self._next_look() - now
                if not (free and until_look <= 0 and self._may_claim()):
                    left = deadline - now
                    if left <= 0:
                        return None
                    self._changed.wait(min(left, until_look) if until_look > 0 else left)
                    continue
            self._claim(free)

    def _next_look(self) -> float:
        """By the monotonic clock. Called with the lock."""
        return min(self._look_at, self._due[0]) if self._due else self._look_at

    def _free(self) -> int:
        """How many messages to claim now; 0 if it is not worth a claim. Called with the lock."""
        if self._stopped:
            return 0
        since = time.monotonic() - READ_AHEAD
        while self._finishes and self._finishes[0] < since:
            self._finishes.popleft()
        limit = max(self._prefetch, len(self._finishes))
        free = limit - self._unfinished
        return free if free >= max(1, limit // 4) else 0

    def _claim(self, count: int) -> None:
        now = time.monotonic()
        with self._changed:
            # Before the query: a wake-up that comes while it runs must not be forgotten.
            self._look_at = now + POLL_SECONDS
            while self._due and self._due[0] <= now:
                heapq.heappop(self._due)
        arguments = {
            "queue_name": self._queue_name,
            "count": count,
            "worker_id": self._worker_id,
            "finished": self._settler.waiting(),
        }
        try:
            with self._database.hasty_transaction() as connection:
                if self._claim_in_doubt:
                    known = {"known": self._settler.held()}
                    connection.execute(QUERIES["release_unknown"], arguments | known)
                claim = connection.execute(QUERIES["claim"], arguments)
            self._claim_in_doubt = False
            rows = claim.fetchall()
        except DatabaseUnavailable as error:
            # Not raised: Dramatiq would drop the consumer, and what it holds, for three seconds.
            # The claim may have been made and its answer lost, so those messages are ours and
            # unknown to us; the next claim gives them back first.
            logger.warning("cannot claim messages", queue=self._queue_name, reason=str(error))
            self._claim_in_doubt = True
            return
        rows.sort()
        deliveries = [
            Delivery(dramatiq.Message.decode(text.encode()), number) for _seq, number, text in rows
        ]
        self._settler.hold(deliveries)
        with self._changed:
            self._ready.extend(deliveries)
            self._unfinished += len(rows)
            if len(rows) == count:
                self._look_at = 0.0  # there is probably more

    def wake(self) -> None:
        with self._changed:
            self._look_at = 0.0
            self._changed.notify_all()

    def look_after(self, seconds: float) -> None:
        """Look once more at that time from now, when a message will be due."""
        with self._changed:
            heapq.heappush(self._due, time.monotonic() + seconds)
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            deliveries = list(self._ready)
            self._ready.clear()
            self._changed.notify_all()
        self.requeue(deliveries)

    def ack(self, message: Delivery) -> None:
        self._settler.put(message, "done")
        self._finished(1)

    def nack(self, message: Delivery) -> None:
        self._settler.put(message, "rejected")
        self._finished(1)

    def requeue(self, messages: Iterable[Delivery]) -> None:
        deliveries = list(messages)
        self._hand_back(deliveries)
        self._settler.let_go(deliveries)
        self._finished(len(deliveries))

    def _finished(self, count: int) -> None:
        now = time.monotonic()
        with self._changed:
            self._unfinished -= count
            self._finishes.extend([now] * count)
            # The consumer is woken when a claim is worth it, not for each message.
            if not self._ready and self._free():
                self._changed.notify_all()

    def close(self) -> None:
        self.stop()


@dataclass(frozen=True, slots=True)
class _Settlement:
    message_id: str
    delivery: int
    state: str
    message: str | None


class Settler:
    """Knows what this worker holds, and writes acknowledgements in batches, from its own thread.

    An acknowledgement is given only after the work was recorded, so one that is lost (the process
    dies before it is written) leads to a second delivery, never to a gap.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: set[str] = set()  # message ids, from the claim until it is settled
        self._waiting: deque[_Settlement] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="settler", daemon=True)
        self._thread.start()

    def hold(self, deliveries: Iterable[Delivery]) -> None:
        with self._changed:
            self._held.update(delivery.message_id for delivery in deliveries)

    def let_go(self, deliveries: Iterable[Delivery]) -> None:
        with self._changed:
            self._held.difference_update(delivery.message_id for delivery in deliveries)

    def held(self) -> list[str]:
        with self._changed:
            return list(self._held)

    def waiting(self) -> list[str]:
        """Ids of messages that are finished, which Postgres does not know yet."""
        with self._changed:
            return [one.message_id for one in self._waiting]

    def put(self, delivery: Delivery, state: str) -> None:
        # A rejected message keeps what Retries noted in its options; a finished one needs nothing.
        text = delivery.encode().decode() if state == "rejected" else None
        with self._changed:
            self._waiting.append(_Settlement(delivery.message_id, delivery.number, state, text))
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=3)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                if not self._closing and len(self._waiting) < SETTLE_BATCH:
                    self._changed.wait(SETTLE_PAUSE)
                count = min(len(self._waiting), SETTLE_BATCH)
                batch = [self._waiting[i] for i in range(count)]
            try:
                self._write(batch)
            except DatabaseUnavailable as error:
                logger.warning("acknowledgements wait", reason=str(error), count=count)
                if self._closing:
                    return
                time.sleep(POLL_SECONDS)
                continue
            with self._changed:
                for one in batch:
                    self._waiting.popleft()
                    self._held.discard(one.message_id)

    def _write(self, batch: list[_Settlement]) -> None:
        with self._database.hasty_transaction() as connection:
            connection.execute(
                QUERIES["settle"],
                {
                    "message_ids": [one.message_id for one in batch],
                    "deliveries": [one.delivery for one in batch],
                    "states": [one.state for one in batch],
                    "messages": [one.message for one in batch],
                },
            )
