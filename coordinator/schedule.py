"""Syncs pairs again and again, as the leader among any number of coordinators."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog
from rich.console import Console

from coordinator import pair_state
from coordinator.lease import held_lease
from coordinator.pairs import ScheduledPair
from coordinator.progress import ProgressDisplay
from coordinator.sync import Coordinator
from tasks.database import Database
from tasks.errors import ChromaSyncError, DatabaseUnavailable, LeaseLost, Stopped
from tasks.settings import Settings
from tasks.stores.address import parse_address
from tasks.workers import new_worker_id

LEASE = "schedule"
LOOK_SECONDS = 1.0  # between two looks at what is due, or wanted
RECOVER_SECONDS = 1.0  # before the lease is asked for again, after Postgres was away
RETRY_SECONDS = 60.0  # after a run that could not be done, if the schedule would wait longer
STOP_SECONDS = 5.0  # for the runs to be left in order

logger = structlog.get_logger(__name__)


class Scheduler:
    """Keeps pairs alike until it is stopped. Workers run elsewhere, or beside it in this process.

    Stands by while another coordinator leads, and takes over when its lease runs out.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        pairs: Sequence[ScheduledPair],
        *,
        console: Console,
        stopping: threading.Event,
    ) -> None:
        self._settings = settings
        self._database = database
        self._pairs = pairs
        self._console = console
        self._stopping = stopping

    def run(self) -> None:
        """Lead or stand by, until `stopping` is set."""
        while not self._stopping.is_set():
            try:
                with held_lease(
                    self._database,
                    LEASE,
                    holder=new_worker_id(),
                    seconds=self._settings.sync_lease_seconds,
                    patience=math.inf,
                    waiting=lambda: self._say("Another coordinator leads; standing by."),
                    stopping=self._stopping,
                ) as lease:
                    self._say("This coordinator leads.")
                    self._lead(lease.lost)
                    lease.check()
            except Stopped:
                return
            except LeaseLost as error:
                logger.warning("standing by", reason=str(error))
            except DatabaseUnavailable as error:
                logger.warning("standing by until Postgres is back", reason=str(error))
                self._stopping.wait(RECOVER_SECONDS)

    def _lead(self, lost: threading.Event) -> None:
        """Until the lease is lost, or we are stopped."""
        pair_state.register(self._database, self._pairs)
        over = threading.Event()
        threads = [
            threading.Thread(
                target=_PairLoop(
                    self._settings, self._database, pair, over=over, say=self._say
                ).run,
                name=f"pair-{pair.name}",
                daemon=True,
            )
            for pair in self._pairs
        ]
        for thread in threads:
            thread.start()
        try:
            while not (self._stopping.wait(0.2) or lost.is_set()):
                pass
        finally:
            over.set()
            deadline = time.monotonic() + STOP_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _say(self, text: str) -> None:
        self._console.print(text)


class _PairLoop:
    """One pair, from one run to the next."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        pair: ScheduledPair,
        *,
        over: threading.Event,
        say: Callable[[str], None],
    ) -> None:
        self._database = database
        self._pair = pair
        self._over = over
        self._say = say
        self._coordinator = Coordinator(
            settings,
            database,
            pair.source,
            pair.target,
            display=ProgressDisplay(Console(stderr=True), quiet=True),
            pair=pair.name,
            stopping=over,
        )
        # A directory is served to this machine only: its chunks are for a worker of our own.
        kinds = {parse_address(one).kind for one in (pair.source, pair.target)}
        self._options = replace(pair.options, workers=None if "directory" in kinds else 0)
        self._tried: datetime | None = None  # since we lead
        self._has_failed = False

    def run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                wanted = self._what_is_due()
                if wanted is not None:
                    self._carry_out(wanted)
            except (Stopped, LeaseLost):
                return
            except DatabaseUnavailable as error:
                logger.warning("waiting for Postgres", pair=self._pair.name, reason=str(error))
            except Exception:
                # The loop must not die: a pair that nobody looks at any more looks healthy.
                logger.exception("unexpected error", pair=self._pair.name)

    def _what_is_due(self) -> str | None:
        """ "sync", "verify", or nothing yet."""
        state = pair_state.read_state(self._database, self._pair.name)
        if state.paused:
            return None
        if state.requested is not None:
            return state.requested
        due = self._due(state)
        pair_state.note_due(self._database, self._pair.name, due)
        return "sync" if due <= datetime.now(UTC) else None

    def _due(self, state: pair_state.State) -> datetime:
        begun = [moment for moment in (state.begun, self._tried) if moment is not None]
        if not begun or (state.is_left and self._tried is None):
            # The first of all, or one that a leader before us has left.
            return datetime.now(UTC)
        due = self._pair.schedule.next_after(max(begun))
        if self._has_failed and self._tried is not None:
            due = min(due, self._tried + timedelta(seconds=RETRY_SECONDS))
        return due

    def _carry_out(self, wanted: str) -> None:
        self._tried = datetime.now(UTC)
        error = None
        try:
            with self._coordinator.lead():
                pair_state.take_request(self._database, self._pair.name)
                if wanted == "verify":
                    report = self._coordinator.verify(self._options)
                else:
                    report = self._coordinator.sync(self._options)
            self._say(f"{self._pair.name}: {report.verdict()}")
        except (Stopped, LeaseLost, DatabaseUnavailable):
            raise
        except ChromaSyncError as failure:
            # A store that is away today may be back tomorrow.
            error = str(failure)
            logger.error("a run could not be done", pair=self._pair.name, reason=error)
        self._has_failed = error is not None
        pair_state.note_error(self._database, self._pair.name, error)
