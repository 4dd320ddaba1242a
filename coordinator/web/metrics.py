"""What Prometheus is told of the database, asked when it scrapes.

All coordinators tell the same facts, so dashboards take the `max by` of them. If Postgres does not
answer, what it would have told is left out, and `chroma_sync_scrape_errors_total` grows.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import psycopg
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from coordinator.schedule import LEASE
from coordinator.totals import (
    DURATION_BOUNDS,
    WAIT_BOUNDS,
    Totals,
    limit_statements,
    read_totals,
)
from coordinator.web.shared import Shared
from tasks.actors import PRIORITIES, queue_of
from tasks.database import Database, load_queries
from tasks.errors import ChromaSyncError, DatabaseUnavailable
from tasks.worker import DEFAULT_QUEUE

QUERIES = load_queries("metrics")
BUDGET = 5.0  # seconds for all that is asked; Prometheus by default waits 10
PATIENCE = 7.0  # the same, if not even a connection is to be had

KINDS = tuple(PRIORITIES)
QUEUES = tuple(queue_of(kind, DEFAULT_QUEUE) for kind in KINDS)
MESSAGE_STATES = ("queued", "delayed", "consumed", "done", "rejected")
TASK_STATES = ("pending", "processing", "completed", "failed")
WORKER_STATES = ("active", "stopped", "dead")
ACTIONS = (
    *("added", "updated", "deleted", "unchanged"),
    *("missing", "extra", "differing", "unreadable"),
)
DIRECTIONS = ("read", "written")
CHUNK_EVENTS = {
    "planned": "Chunks that were planned.",
    "completed": "Chunks that were completed, each with one result.",
    "failed": "Times that a chunk was set aside as failed.",
    "retried": "Times that a chunk was tried again after a fault.",
    "rescued": "Times that a chunk was taken over from a dead worker, or sent again.",
}

Row: TypeAlias = tuple[Any, ...]

logger = structlog.get_logger(__name__)


class DatabaseCollector(Collector):
    """What the database knows, for a registry of prometheus_client."""

    def __init__(self, database: Database, registry: CollectorRegistry) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._errors = 0
        self._shared = Shared(self._look, patience=PATIENCE)
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked when the collector is registered."""
        return []

    def collect(self) -> Iterable[Metric]:
        try:
            yield from self._shared.get()
        except DatabaseUnavailable as error:
            self._failed(error)
        errors = CounterMetricFamily(
            "chroma_sync_scrape_errors", "Times that Postgres could not be asked for metrics."
        )
        errors.add_metric([], self._errors)
        yield errors

    def _look(self) -> list[Metric]:
        until = time.monotonic() + BUDGET
        found: list[Metric] = []
        parts: Sequence[Callable[[float], Iterable[Metric]]] = (
            self._leader,
            self._pairs,
            self._workers,
            self._queue,
            self._tasks,
            self._totals,
            self._postgres,
        )
        for part in parts:
            try:
                found += part(until)
            except ChromaSyncError as error:
                self._failed(error)
                if not isinstance(error.__cause__, psycopg.errors.QueryCanceled):
                    break  # Postgres is away; the rest would only wait for it as well
            except psycopg.Error as error:
                self._failed(error)
        return found

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self._errors += 1
        logger.warning("metrics are incomplete", reason=str(error).partition("\n")[0])

    def _ask(self, query: str, until: float, **values: object) -> list[Row]:
        with self._database.transaction() as connection:
            limit_statements(connection, until)
            return connection.execute(QUERIES[query], values).fetchall()

    # Each a part of what is told --------------------------------------------------------------

    def _leader(self, until: float) -> Iterable[Metric]:
        leader = _gauge("leader", "Who leads the schedule.", "holder")
        term = _gauge("leader_term", "Grows with each new leader.")
        leads = _gauge("is_leader", "Whether the process that tells it leads.")
        us = f"{socket.gethostname()}-{os.getpid()}-"
        ours = 0
        for holder, number, runs in self._ask("leader", until, name=LEASE):
            term.add_metric([], number)
            if runs:
                leader.add_metric([holder], 1)
                ours = int(holder.startswith(us))
        leads.add_metric([], ours)
        return [leader, term, leads]

    def _pairs(self, until: float) -> Iterable[Metric]:
        lag = _gauge("pair_lag_seconds", "Since the pair was known to be alike.", "pair")
        stalled = _gauge(
            "pair_stalled_seconds", "Since its unfinished run gave a sign of life.", "pair"
        )
        paused = _gauge("pair_paused", "Whether its schedule is paused.", "pair")
        verified = _gauge("pair_last_run_verified", "Whether its last run was verified.", "pair")
        unlike = _gauge(
            "verification_mismatches", "Records not alike when it was last looked at.", "pair"
        )
        for name, is_paused, since_alike, since_life, was_verified, count in self._ask(
            "pairs", until
        ):
            lag.add_metric([name], math.inf if since_alike is None else max(0, since_alike))
            stalled.add_metric([name], max(0, since_life or 0))
            paused.add_metric([name], is_paused)
            verified.add_metric([name], was_verified)
            unlike.add_metric([name], count)
        return [lag, stalled, paused, verified, unlike]

    def _workers(self, until: float) -> Iterable[Metric]:
        heartbeat = _gauge("worker_last_heartbeat_seconds", "Since its last heartbeat.", "worker")
        memory = _gauge("worker_memory_bytes", "Memory in use (resident).", "worker")
        cpu = _gauge("worker_cpu_percent", "Processor time, 100 is one core.", "worker")
        by_status: Counter[str] = Counter()
        for name, status, age, used, percent in self._ask("workers", until):
            by_status[status] += 1
            if status != "stopped":
                heartbeat.add_metric([name], max(0, age))
            if status == "active":
                memory.add_metric([name], used or 0)
                cpu.add_metric([name], percent or 0)
        workers = _gauge("workers", "Active; stopped within a day; died within an hour.", "status")
        for status in WORKER_STATES:
            workers.add_metric([status], by_status[status])
        return [workers, heartbeat, memory, cpu]

    def _queue(self, until: float) -> Iterable[Metric]:
        messages = _gauge("queue_messages", "Messages by state.", "queue", "state")
        oldest = _gauge("queue_oldest_seconds", "Age of the oldest that is due.", "queue")
        counts: Counter[tuple[str, str]] = Counter()
        ages = dict.fromkeys(QUEUES, 0.0)
        for queue, state, count, age in self._ask("queue", until):
            counts[queue, state] = count
            ages[queue] = max(ages.get(queue, 0.0), age)
        for queue, age in ages.items():
            oldest.add_metric([queue], age)
            for state in MESSAGE_STATES:
                messages.add_metric([queue, state], counts[queue, state])
        return [messages, oldest]

    def _tasks(self, until: float) -> Iterable[Metric]:
        tasks = _gauge("tasks", "Chunks of runs that have not ended.", "kind", "status")
        counts = {(kind, status): count for kind, status, count in self._ask("tasks", until)}
        for kind in KINDS:
            for status in TASK_STATES:
                tasks.add_metric([kind, status], counts.get((kind, status), 0))
        return [tasks]

    def _totals(self, until: float) -> Iterable[Metric]:
        totals = read_totals(self._database, until=until)
        for event, meaning in CHUNK_EVENTS.items():
            chunks = CounterMetricFamily(f"chroma_sync_chunks_{event}", meaning, labels=["kind"])
            for kind in KINDS:
                chunks.add_metric([kind], totals[f"chunks_{event}", kind, ""])
            yield chunks
        for name, meaning, label, values in (
            ("records", "Records by what was done to them, or found.", "action", ACTIONS),
            ("bytes", "Content of records.", "direction", DIRECTIONS),
        ):
            family = CounterMetricFamily(f"chroma_sync_{name}", meaning, labels=[label])
            for value in values:
                family.add_metric([value], totals[name, "", value])
            yield family
        suppressed = CounterMetricFamily(
            "chroma_sync_results_suppressed", "Late results that were refused."
        )
        suppressed.add_metric([], totals["results_suppressed", "", ""])
        yield suppressed
        yield _histogram(totals, "chunk_duration_seconds", "Work on a chunk.", DURATION_BOUNDS)
        yield _histogram(
            totals, "chunk_queue_wait_seconds", "From planned to first begun.", WAIT_BOUNDS
        )

    def _postgres(self, until: float) -> Iterable[Metric]:
        dead = _gauge("postgres_dead_tuples", "Rows that a vacuum has yet to remove.", "table")
        for table, count in self._ask("dead_tuples", until):
            dead.add_metric([table], count)
        connections = _gauge("postgres_connections", "Connections to the database.", "state")
        for state, count in self._ask("connections", until):
            connections.add_metric([state], count)
        ratio = _gauge("postgres_notification_queue_ratio", "How full it is, from 0 to 1.")
        for (share,) in self._ask("notification_queue", until):
            ratio.add_metric([], share)
        return [dead, connections, ratio]


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"chroma_sync_{name}", meaning, labels=labels)


def _histogram(
    totals: Totals, name: str, meaning: str, bounds: Sequence[float]
) -> HistogramMetricFamily:
    """Of counts for each bucket, those that Prometheus wants: each with all below it."""
    family = HistogramMetricFamily(f"chroma_sync_{name}", meaning, labels=["kind"])
    for kind in KINDS:
        buckets: list[tuple[str, float]] = []
        reached = 0.0
        for bound in (*map(_as_postgres_says, bounds), "+Inf"):
            reached += totals[name, kind, bound]
            buckets.append((bound if bound == "+Inf" else str(float(bound)), reached))
        family.add_metric([kind], buckets, sum_value=totals[f"{name}_sum", kind, ""])
    return family


def _as_postgres_says(bound: float) -> str:
    return f"{bound:g}"
