"""A worker process whose messages do nothing: what is left is the queue.

python -m tests.chaos.noop_worker DATABASE_URL QUEUE
"""

from __future__ import annotations

import signal
import sys
import threading

import dramatiq

from tasks.broker import PostgresBroker
from tasks.database import Database
from tasks.workers import Heartbeat, new_worker_id

THREADS = 8
ACTOR = "noop"


def noop() -> None:
    pass


def main(url: str, queue_name: str) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    database = Database(url)
    database.open()
    broker = PostgresBroker(database, worker_id=new_worker_id(), middleware=[])
    dramatiq.actor(noop, actor_name=ACTOR, queue_name=queue_name, broker=broker)
    heartbeat = Heartbeat(database, worker_id=broker.worker_id, queues=[queue_name], lease=6)
    worker = dramatiq.Worker(broker, worker_threads=THREADS, worker_timeout=200)
    heartbeat.start()
    worker.start()
    while not stop.wait(1):
        pass
    broker.stop_consuming()
    worker.stop(timeout=3000)
    broker.close()
    heartbeat.stop()
    database.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
