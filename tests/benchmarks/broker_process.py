"""One worker process of 8 threads, on stock dramatiq-pg or on our broker, for the benchmark.

    python -m tests.benchmarks.broker_process KIND URL [THREADS]

Writes a line to standard output when it is ready. An actor `mark` writes one for each message
that it begins, with the time; `pause` sleeps for so many milliseconds; `noop` does nothing.
SIGTERM stops it as a worker is stopped.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any

import dramatiq
import dramatiq_pg
from dramatiq.middleware import Middleware, default_middleware
from psycopg import conninfo

from tasks.broker import PostgresBroker
from tasks.database import Database
from tasks.log import configure_logging
from tasks.settings import Settings
from tasks.workers import Heartbeat, new_worker_id

QUEUE = "bench"
THREADS = 8


def stock_broker(url: str) -> dramatiq_pg.PostgresBroker:
    """dramatiq-pg as it comes; it mangles URLs with a socket directory, so it gets the parts."""
    parts: Any = conninfo.conninfo_to_dict(url)
    return dramatiq_pg.PostgresBroker(url=parts, results=False, middleware=middleware())


def middleware() -> list[Middleware]:
    """Dramatiq's own default, without its metrics, which need its command line."""
    return [kind() for kind in default_middleware if kind.__name__ != "Prometheus"]


def declare_actors(broker: dramatiq.Broker) -> None:
    """The actors of the benchmark, on any broker."""

    def noop() -> None:
        return None

    def pause(milliseconds: int) -> None:
        time.sleep(milliseconds / 1000)

    def mark(label: str, milliseconds: int) -> None:
        say(f"{label} {time.time()}")
        time.sleep(milliseconds / 1000)

    for function in (noop, pause, mark):
        dramatiq.actor(function, queue_name=QUEUE, broker=broker)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(kind: str, url: str, threads: str = str(THREADS)) -> None:
    """Work until SIGTERM."""
    configure_logging("error")
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    if kind == "stock":
        broker = stock_broker(url)
        declare_actors(broker)
        worker = dramatiq.Worker(broker, worker_threads=int(threads))
        worker.start()
        say("ready")
        stopping.wait()
        worker.stop()
        return
    database = Database(url)
    database.open()
    ours = PostgresBroker(database, worker_id=new_worker_id(), middleware=middleware())
    declare_actors(ours)
    lease = Settings().sync_lease_seconds
    heartbeat = Heartbeat(database, worker_id=ours.worker_id, queues=[QUEUE], lease=lease)
    heartbeat.start()
    worker = dramatiq.Worker(ours, worker_threads=int(threads))
    worker.start()
    say("ready")
    stopping.wait()
    worker.stop()
    ours.close()
    heartbeat.stop()
    database.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
