"""What a role serves while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry

from coordinator.pairs import ScheduledPair
from coordinator.web.address import metrics_address, web_address
from tasks.database import Database
from tasks.settings import Settings

CONNECTIONS = 4  # of its own: a page that is looked at takes none from the coordinator


@contextlib.contextmanager
def coordinator_served(
    settings: Settings,
    database: Database,
    pairs: Sequence[ScheduledPair],
    registry: CollectorRegistry,
) -> Iterator[str | None]:
    """Serve the page, the API and the metrics; gives the URL. Raises `InvalidInput`."""
    listen = web_address(settings)
    if listen is None:
        yield None
        return
    # Here, as in `worker_served`, since it takes long to be imported, and few commands need it.
    from coordinator.web.app import coordinator_app
    from coordinator.web.server import served

    own = Database(database.url, max_connections=CONNECTIONS, listen=database.listen)
    own.open()
    try:
        with served(coordinator_app(settings, own, pairs, listen, registry), listen) as url:
            yield url
    finally:
        own.close()


@contextlib.contextmanager
def worker_served(settings: Settings, registry: CollectorRegistry) -> Iterator[str | None]:
    """Serve the metrics of a worker, if that is wanted; gives the URL. Raises `InvalidInput`."""
    listen = metrics_address(settings)
    if listen is None:
        yield None
        return
    from coordinator.web.app import worker_app
    from coordinator.web.server import served

    with served(worker_app(settings, listen, registry), listen) as url:
        yield url
