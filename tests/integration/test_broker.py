"""The broker, on a real Postgres, with Dramatiq's own worker."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import dramatiq_pg
import pytest
from dramatiq.middleware import Retries

from tasks.broker import PostgresBroker, purge
from tasks.consumer import POLL_SECONDS
from tasks.database import Connection, Database
from tasks.workers import Heartbeat, bury_dead_workers
from tests.eventually import eventually
from tests.integration.ledger_rows import add_worker

QUEUE = "testing"
LEASE = 1.0

MakeBroker = Callable[[str], PostgresBroker]


@pytest.fixture
def make_broker(database: Database) -> Iterator[MakeBroker]:
    brokers = []

    def make(worker_id: str) -> PostgresBroker:
        retries = Retries(max_retries=3, min_backoff=1, max_backoff=50)
        broker = PostgresBroker(database, worker_id=worker_id, middleware=[retries])
        broker.declare_queue(QUEUE)
        brokers.append(broker)
        return broker

    yield make
    for broker in brokers:
        broker.close()


@contextlib.contextmanager
def working(
    database: Database,
    broker: PostgresBroker,
    *,
    threads: int = 2,
    lease: float = 6,
    prefetch: int | None = None,
) -> Iterator[dramatiq.Worker]:
    heartbeat = Heartbeat(database, worker_id=broker.worker_id, queues=[QUEUE], lease=lease)
    heartbeat.start()
    worker = dramatiq.Worker(broker, worker_threads=threads, worker_timeout=100)
    if prefetch is not None:
        worker.queue_prefetch = prefetch
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(timeout=5000)
        heartbeat.stop()


def states(database: Database) -> dict[str, int]:
    # By a connection of its own: a test that cuts all others has just cut the pool's.
    with database.connect() as connection:
        rows = connection.execute("SELECT state::text, count(*) FROM dramatiq.queue GROUP BY 1")
        return dict(rows.fetchall())


def message(actor: str, *args: Any, **options: Any) -> dramatiq.Message[Any]:
    return dramatiq.Message(
        queue_name=QUEUE, actor_name=actor, args=args, kwargs={}, options=options
    )


def claim(
    database: Database, broker: PostgresBroker, *, prefetch: int = 1, lease: float = LEASE
) -> Any:
    """The consumer of a worker whose process we pretend to be, and what it is given."""
    heartbeat = Heartbeat(database, worker_id=broker.worker_id, queues=[QUEUE], lease=lease)
    with database.connection() as connection:
        heartbeat._register(connection)  # without the thread: this worker never renews
    consumer = broker.consume(QUEUE, prefetch=prefetch, timeout=1000)
    return consumer, next(consumer)


def idle(database: Database, broker: PostgresBroker, *, lease: float = LEASE) -> Any:
    """The consumer of such a worker, for which there is nothing yet."""
    consumer, nothing = claim(database, broker, lease=lease)
    assert nothing is None
    return consumer


def test_it_is_a_dramatiq_pg_broker(make_broker: MakeBroker) -> None:
    assert isinstance(make_broker("w"), dramatiq_pg.PostgresBroker)


def test_messages_enqueued_in_a_transaction_are_all_there_or_none(
    database: Database, make_broker: MakeBroker
) -> None:
    broker = make_broker("w")
    with database.transaction() as connection, connection.transaction(force_rollback=True):
        broker.enqueue_many([message("noop") for _ in range(100)], connection)
    assert states(database) == {}
    with database.transaction() as connection:
        broker.enqueue_many([message("noop") for _ in range(100)], connection)
    assert states(database) == {"queued": 100}


def test_every_message_is_worked_on_once_by_competing_workers(
    database: Database, make_broker: MakeBroker
) -> None:
    done: list[tuple[str, int]] = []
    with contextlib.ExitStack() as stack:
        for name in ("one", "two"):
            broker = make_broker(name)

            def note(number: int, name: str = name) -> None:
                done.append((name, number))

            dramatiq.actor(note, actor_name="note", queue_name=QUEUE, broker=broker)
            stack.enter_context(working(database, broker))
        with database.transaction() as connection:
            broker.enqueue_many([message("note", number) for number in range(500)], connection)
        broker.join(QUEUE, timeout=20_000)
    assert sorted(number for _, number in done) == list(range(500))
    assert {name for name, _ in done} == {"one", "two"}
    assert states(database) == {"done": 500}


def test_work_that_is_given_up_keeps_its_place(database: Database, make_broker: MakeBroker) -> None:
    broker = make_broker("w")
    with database.transaction() as connection:
        broker.enqueue_many([message("noop", number) for number in range(3)], connection)
    consumer, first = claim(database, broker)
    broker.enqueue(first, delay=0)  # as Dramatiq does with a retry
    consumer.ack(first)
    assert claim(database, make_broker("other"))[1].message_id == first.message_id
    broker.close()


def test_older_messages_come_first(database: Database, make_broker: MakeBroker) -> None:
    broker = make_broker("w")
    for number in range(5):
        broker.enqueue(message("noop", number))
    consumer, first = claim(database, broker, prefetch=5)
    assert [first.args[0], *(next(consumer).args[0] for _ in range(4))] == [0, 1, 2, 3, 4]


def test_a_retry_waits_in_postgres_and_keeps_its_row(
    database: Database, make_broker: MakeBroker
) -> None:
    broker = make_broker("w")
    attempts = []

    def fail_twice() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise ValueError("not yet")

    actor = dramatiq.actor(fail_twice, queue_name=QUEUE, broker=broker)
    with working(database, broker):
        actor.send()
        broker.join(QUEUE, timeout=20_000)
    assert len(attempts) == 3
    assert states(database) == {"done": 1}


def test_a_message_that_fails_for_good_is_rejected_with_its_traceback(
    database: Database, make_broker: MakeBroker
) -> None:
    broker = make_broker("w")

    def fail() -> None:
        raise ValueError("never")

    actor = dramatiq.actor(fail, queue_name=QUEUE, broker=broker, max_retries=1)
    with working(database, broker):
        actor.send()
        broker.join(QUEUE, timeout=20_000)
    with database.connection() as connection:
        row = connection.execute(
            "SELECT state::text, message->'options'->>'traceback' FROM dramatiq.queue"
        ).fetchone()
    assert row is not None
    assert row[0] == "rejected"
    assert "never" in row[1]


def test_a_delayed_message_is_not_delivered_before_its_time(
    database: Database, make_broker: MakeBroker
) -> None:
    broker = make_broker("w")
    broker.enqueue(message("later"), delay=3_600_000)
    consumer = idle(database, broker, lease=60)
    with database.connection() as connection:
        connection.execute("UPDATE dramatiq.queue SET due_at = now()")
    assert eventually(lambda: next(consumer)).actor_name == "later"


def test_a_worker_takes_its_own_retry_when_it_is_due(
    database: Database, make_broker: MakeBroker
) -> None:
    broker = make_broker("w")
    consumer = idle(database, broker, lease=60)
    began = time.monotonic()
    broker.enqueue(message("soon"), delay=100)
    broker.enqueue(message("later"), delay=200)
    for actor_name in ("soon", "later"):
        delivery = next(consumer)
        assert delivery is not None
        assert delivery.actor_name == actor_name
        consumer.ack(delivery)
    assert 0.2 <= time.monotonic() - began < POLL_SECONDS / 2


def test_workers_that_have_nothing_to_do_leave_postgres_alone(
    database: Database, make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_broker("w")
    idle(database, broker, lease=60)
    consumer = broker.consume(QUEUE, prefetch=2, timeout=10)
    asked = 0

    def transaction() -> contextlib.AbstractContextManager[Connection]:
        nonlocal asked
        asked += 1
        return Database.hasty_transaction(database)

    monkeypatch.setattr(database, "hasty_transaction", transaction)
    began = time.monotonic()
    for _ in range(3):
        assert next(consumer) is None
    assert time.monotonic() - began > 2 * POLL_SECONDS  # however often Dramatiq would be told
    assert 1 <= asked <= 1 + (time.monotonic() - began) / POLL_SECONDS
    # Nor is anything lost by that: a poll finds what nobody was told of.
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO dramatiq.queue (message_id, queue_name, state, message)"
            " VALUES (%s, %s, 'queued', %s)",
            [uuid4(), QUEUE, message("noop").encode().decode()],
        )
    delivery = eventually(lambda: next(consumer))
    assert delivery is not None
    assert delivery.actor_name == "noop"


def test_messages_of_a_dead_worker_go_to_another(
    database: Database, make_broker: MakeBroker
) -> None:
    dead, alive = make_broker("dead"), make_broker("alive")
    dead.enqueue(message("noop"))
    _, held = claim(database, dead)
    assert held is not None
    assert eventually(lambda: bury_dead_workers(database)) == ["dead"]
    _, delivery = claim(database, alive)
    assert delivery.message_id == held.message_id
    assert delivery.number == 2


def test_a_worker_that_finishes_its_last_messages_is_not_kept_busy_by_its_consumers(
    database: Database, make_broker: MakeBroker
) -> None:
    broker = make_broker("w")
    consumer = idle(database, broker, lease=60)
    consumer.stop()
    began = time.thread_time()
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        assert next(consumer) is None
    assert time.thread_time() - began < 0.1


def test_a_worker_without_a_lease_is_given_nothing(
    database: Database, make_broker: MakeBroker
) -> None:
    dead, alive = make_broker("dead"), make_broker("alive")
    consumer = idle(database, dead)
    assert eventually(lambda: bury_dead_workers(database)) == ["dead"]
    dead.enqueue(message("noop"))
    assert next(consumer) is None
    assert claim(database, alive)[1] is not None


def test_messages_claimed_after_the_burial_are_not_held_for_ever(
    database: Database, make_broker: MakeBroker
) -> None:
    dead, alive = make_broker("dead"), make_broker("alive")
    dead.enqueue(message("noop"))
    _, held = claim(database, dead)
    with database.connection() as connection:  # as if the claim had been under way meanwhile
        connection.execute("UPDATE sync_workers SET worker_status = 'dead'")
    assert bury_dead_workers(database) == []
    assert claim(database, alive)[1].message_id == held.message_id


def test_a_late_acknowledgement_does_not_finish_what_is_somebody_elses(
    database: Database, make_broker: MakeBroker
) -> None:
    paused, other = make_broker("paused"), make_broker("other")
    paused.enqueue(message("noop"))
    consumer, held = claim(database, paused)
    eventually(lambda: bury_dead_workers(database))
    _, delivery = claim(database, other)
    assert delivery.message_id == held.message_id

    consumer.ack(held)
    paused.enqueue(held, delay=0)  # as Retries would
    paused.hand_back([held])
    paused.close()  # writes what waits
    assert states(database) == {"consumed": 1}


def test_a_late_acknowledgement_does_not_finish_a_later_delivery_to_the_same_worker(
    database: Database, make_broker: MakeBroker
) -> None:
    broker = make_broker("w")
    broker.enqueue(message("noop"))
    consumer, first = claim(database, broker)
    eventually(lambda: bury_dead_workers(database))
    _, second = claim(database, broker)
    assert (second.message_id, second.number) == (first.message_id, 2)
    consumer.ack(first)
    broker.enqueue(first, delay=0)
    broker.hand_back([first])
    broker.close()
    assert states(database) == {"consumed": 1}


def test_a_finished_message_is_not_brought_back_by_sending_it_again(
    database: Database, make_broker: MakeBroker
) -> None:
    broker = make_broker("w")
    sent = message("noop")
    broker.enqueue(sent)
    consumer, delivery = claim(database, broker)
    consumer.ack(delivery)
    eventually(lambda: states(database) == {"done": 1})
    broker.enqueue(sent)
    assert states(database) == {"done": 1}


def test_what_was_prefetched_is_handed_back_at_once_when_a_worker_stops(
    database: Database, make_broker: MakeBroker
) -> None:
    stopping, other = make_broker("stopping"), make_broker("other")
    began, finish = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        finish.wait(20)

    dramatiq.actor(wait, actor_name="wait", queue_name=QUEUE, broker=stopping)
    with database.transaction() as connection:
        stopping.enqueue_many([message("wait") for _ in range(8)], connection)
    with working(database, stopping, threads=1, prefetch=8) as worker:
        assert began.wait(10)
        eventually(lambda: states(database) == {"consumed": 8})
        stop = threading.Thread(target=lambda: worker.stop(timeout=20_000))
        stop.start()
        # One is still being worked on; the others do not wait for it.
        eventually(lambda: states(database) == {"consumed": 1, "queued": 7})
        _, delivery = claim(database, other)
        assert delivery is not None
        finish.set()
        stop.join(20)


def test_a_claim_whose_answer_was_lost_is_given_back(
    database: Database, make_broker: MakeBroker
) -> None:
    broker = make_broker("w")
    broker.enqueue(message("noop"))
    consumer, _ = claim(database, broker, prefetch=4)
    # As if another message had been claimed for us, and the answer had not arrived.
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO dramatiq.queue (message_id, queue_name, state, worker_id, message)"
            " VALUES (%s, %s, 'consumed', 'w', %s)",
            [uuid4(), QUEUE, message("lost").encode().decode()],
        )
    consumer._claim_in_doubt = True
    consumer.wake()
    assert eventually(lambda: next(consumer)).actor_name == "lost"
    assert states(database) == {"consumed": 2}


def test_connections_that_are_cut_neither_lose_nor_repeat_a_message(
    database: Database, make_broker: MakeBroker
) -> None:
    broker = make_broker("w")
    done: list[int] = []

    def note(number: int) -> None:
        done.append(number)

    dramatiq.actor(note, actor_name="note", queue_name=QUEUE, broker=broker)
    with database.transaction() as connection:
        broker.enqueue_many([message("note", number) for number in range(2000)], connection)
    with working(database, broker, threads=4):
        for cut in range(4):
            eventually(lambda cut=cut: len(done) > 300 * cut)  # type: ignore[misc]
            with database.connect() as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
        eventually(lambda: states(database) == {"done": 2000}, within=40)
    assert sorted(done) == list(range(2000))


def test_old_messages_are_purged_and_others_stay(
    database: Database, make_broker: MakeBroker
) -> None:
    broker = make_broker("w")
    with database.transaction() as connection:
        broker.enqueue_many([message("noop") for _ in range(10)], connection)
    with database.connection() as connection:
        connection.execute(
            "UPDATE dramatiq.queue SET state = 'done', mtime = now() - interval '1 hour'"
            " WHERE seq <= (SELECT min(seq) + 5 FROM dramatiq.queue)"
        )
    assert purge(database, age=7200) == 0
    assert purge(database, age=1800) == 6
    assert states(database) == {"queued": 4}


def test_the_hot_queries_use_their_indexes(database: Database, make_broker: MakeBroker) -> None:
    broker = make_broker("w")
    with database.transaction() as connection:
        broker.enqueue_many([message("noop") for _ in range(3000)], connection)
    due = (
        " FROM dramatiq.queue WHERE queue_name = 'testing' AND state = 'queued'"
        " AND due_at <= now() AND due_at < 'infinity'"
    )
    with database.connection() as connection:
        connection.execute("ANALYZE dramatiq.queue")
        for query in (
            f"SELECT message_id{due} AND lane = '' ORDER BY seq LIMIT 8 FOR UPDATE SKIP LOCKED",
            f"SELECT min(lane){due} AND lane > ''",
        ):
            plan = connection.execute(f"EXPLAIN {query}".encode()).fetchall()
            text = "\n".join(row[0] for row in plan)
            assert "queue_next" in text
            assert "Sort" not in text


class Hands:
    """Workers that claim and finish messages as a test says; their leases run."""

    def __init__(self, database: Database, *workers: str) -> None:
        self._database = database
        for worker_id in workers:
            add_worker(database, worker_id)

    def claim(self, worker_id: str, count: int, *, finished: Sequence[UUID] = ()) -> list[str]:
        """The lanes of what it is given."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT message::jsonb->'options'->>'lane' FROM sync_claim(%s, %s, %s, %s)",
                [QUEUE, worker_id, count, list(finished)],
            ).fetchall()
        return sorted(lane for (lane,) in rows)

    def held(self, lane: str) -> list[UUID]:
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT message_id FROM dramatiq.queue WHERE lane = %s AND state = 'consumed'",
                [lane],
            ).fetchall()
        return [message_id for (message_id,) in rows]

    def finish(self, lane: str) -> None:
        """Everything of a lane that is in hand."""
        with self._database.connection() as connection:
            connection.execute(
                "UPDATE dramatiq.queue SET state = 'done' WHERE lane = %s AND state = 'consumed'",
                [lane],
            )


def enqueue_lanes(database: Database, broker: PostgresBroker, **counts: int) -> None:
    with database.transaction() as connection:
        for lane, count in counts.items():
            broker.enqueue_many([message("noop", lane=lane) for _ in range(count)], connection)


def hold_two_of_each(database: Database, broker: PostgresBroker) -> Hands:
    """Two messages of a fast lane and two of a slow one are in hand, and many more wait."""
    enqueue_lanes(database, broker, fast=100, slow=100)
    hands = Hands(database, "w")
    assert hands.claim("w", 4) == ["fast", "fast", "slow", "slow"]
    return hands


def test_lanes_share_what_is_in_hand(database: Database, make_broker: MakeBroker) -> None:
    enqueue_lanes(database, make_broker("w"), first=100)
    hands = Hands(database, "w", "v")
    assert hands.claim("w", 4) == ["first"] * 4
    enqueue_lanes(database, make_broker("w"), later=100)
    assert hands.claim("w", 2) == ["later"] * 2
    assert hands.claim("v", 2) == ["later"] * 2
    assert hands.claim("v", 2) == ["first", "later"]


def test_a_slow_lane_does_not_come_to_hold_every_worker(
    database: Database, make_broker: MakeBroker
) -> None:
    hands = hold_two_of_each(database, make_broker("w"))
    for _ in range(10):
        hands.finish("fast")
        assert hands.claim("w", 2) == ["fast", "fast"]


def test_what_is_not_acknowledged_yet_is_in_nobodys_hands(
    database: Database, make_broker: MakeBroker
) -> None:
    hands = hold_two_of_each(database, make_broker("w"))
    assert hands.claim("w", 2, finished=hands.held("fast")) == ["fast", "fast"]


def test_a_worker_with_one_place_serves_all_lanes(
    database: Database, make_broker: MakeBroker
) -> None:
    enqueue_lanes(database, make_broker("w"), one=100, other=100)
    hands = Hands(database, "w")
    served = []
    for _ in range(40):  # by chance, as nothing is in hand: all of one lane once in 2**39
        served += hands.claim("w", 1)
        hands.finish(served[-1])
    assert set(served) == {"one", "other"}


def test_a_claim_takes_what_there_is_when_a_lane_ends(
    database: Database, make_broker: MakeBroker
) -> None:
    enqueue_lanes(database, make_broker("w"), long=20, short=2)
    hands = Hands(database, "w")
    assert hands.claim("w", 10) == ["long"] * 8 + ["short"] * 2
    assert hands.claim("w", 10) == ["long"] * 10
    assert hands.claim("w", 10) == ["long"] * 2
    assert hands.claim("w", 10) == []


def test_a_claim_passes_by_what_another_is_just_claiming(
    database: Database, make_broker: MakeBroker
) -> None:
    enqueue_lanes(database, make_broker("w"), busy=2, free=5)
    hands = Hands(database, "w")
    with database.transaction() as connection:
        connection.execute("SELECT FROM dramatiq.queue WHERE lane = 'busy' FOR UPDATE")
        assert hands.claim("w", 4) == ["free"] * 4
