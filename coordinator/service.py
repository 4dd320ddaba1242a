"""The roles of a process that runs as a service: coordinate, work, or both."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from coordinator.pairs import ScheduledPair, configured_pairs
from coordinator.schedule import Scheduler
from coordinator.web.address import metrics_address, web_address
from coordinator.web.process_metrics import MessageMetrics, process_registry
from coordinator.web.serve import coordinator_served, worker_served
from tasks.database import Database
from tasks.settings import Settings
from tasks.worker import Worker

STOP_SECONDS = 3.0  # for Postgres to answer at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    coordinates: bool
    works: bool


def role_of(settings: Settings) -> Role:
    """The role that the environment gives; `SYNC_DISTRIBUTED=false` is one process for all."""
    if not settings.sync_distributed:
        return Role(coordinates=True, works=True)
    if settings.sync_coordinator:
        return Role(coordinates=True, works=settings.enable_sync_worker)
    return Role(coordinates=False, works=True)


def check_role(settings: Settings, role: Role) -> list[ScheduledPair]:
    """The pairs to coordinate. Raises `InvalidInput` before anything is started."""
    if not role.coordinates:
        metrics_address(settings)
        return []
    web_address(settings)
    return configured_pairs(settings)


def serve(
    settings: Settings,
    database: Database,
    role: Role,
    pairs: Sequence[ScheduledPair],
    *,
    stop: threading.Event,
    console: Console,
    queue_name: str,
) -> None:
    """Be that until `stop` is set; then leave everything in order, within seconds.

    `pairs`: as `check_role` gave them.
    """
    registry = process_registry()
    # Each of those who are stopped tells Postgres. It may be gone: they must not wait in turn.
    threading.Thread(target=_hurry, args=[database, stop], name="hurry", daemon=True).start()
    with contextlib.ExitStack() as stack:
        if role.coordinates:
            url = stack.enter_context(coordinator_served(settings, database, pairs, registry))
            if url is not None:
                console.print(f"Page, API and metrics: {url}/")
        else:
            stack.enter_context(worker_served(settings, registry))
        if role.works:
            worker = Worker(
                settings, database, queue_name=queue_name, watchers=[MessageMetrics(registry)]
            )
            worker.start()
            stack.callback(worker.stop)
        if role.coordinates:
            Scheduler(settings, database, pairs, console=console, stopping=stop).run()
        # With a timeout: a signal that reached the process while it was paused may be taken by any
        # of its threads, and the main thread, which alone runs handlers, must wake to find it.
        while not stop.wait(1):
            pass


def _hurry(database: Database, stop: threading.Event) -> None:
    stop.wait()
    database.hurry(STOP_SECONDS)
