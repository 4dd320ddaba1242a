"""Syncs one pair again and again, as the leader among any number of coordinators."""

from __future__ import annotations

import math
import time

import structlog
from rich.console import Console

from coordinator.options import Options
from coordinator.progress import ProgressDisplay
from coordinator.sync import Coordinator
from tasks.database import Database
from tasks.errors import ChromaSyncError, DatabaseUnavailable, LeaseLost
from tasks.settings import Settings

RECOVER_SECONDS = 1.0  # before the lease is asked for again, after Postgres was away

logger = structlog.get_logger(__name__)


def run_on_schedule(
    settings: Settings,
    database: Database,
    source: str,
    target: str,
    *,
    display: ProgressDisplay,
    console: Console,
) -> None:
    """Sync every SYNC_INTERVAL seconds, until interrupted. Workers run elsewhere.

    Stands by while another coordinator leads, and takes over when its lease runs out.
    """
    coordinator = Coordinator(settings, database, source, target, display=display)
    while True:
        try:
            with coordinator.lead(patience=math.inf):
                display.say("This coordinator leads.")
                _sync_while_leading(coordinator, settings, console)
        except LeaseLost as error:
            logger.warning("standing by", reason=str(error))
        except DatabaseUnavailable as error:
            logger.warning("standing by until Postgres is back", reason=str(error))
            time.sleep(RECOVER_SECONDS)


def _sync_while_leading(coordinator: Coordinator, settings: Settings, console: Console) -> None:
    options = Options(chunk_size=settings.sync_chunk_size, workers=0)
    while True:
        began = time.monotonic()
        try:
            coordinator.sync(options).print(console)
        except (LeaseLost, DatabaseUnavailable):
            raise
        except ChromaSyncError as error:
            # A store that is away today may be back tomorrow.
            logger.error("the scheduled run could not be done", reason=str(error))
        coordinator.rest(settings.sync_interval - (time.monotonic() - began))
