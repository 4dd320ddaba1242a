"""A web server over a real database, and programs that ask it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import httpx
import pytest

from coordinator import pair_state
from coordinator.options import Options
from coordinator.pairs import Schedule, ScheduledPair
from coordinator.web.process_metrics import process_registry
from coordinator.web.serve import coordinator_served
from tasks.database import Database
from tasks.settings import Settings
from tests.e2e.conftest import program, servers, sides  # noqa: F401  (fixtures)
from tests.ports import free_port

TOKEN = "a token that nobody has"
SOURCE, TARGET = "http://127.0.0.1:9", "http://127.0.0.1:9/target"  # as in ledger_rows


def pair(name: str = "docs", *, source: str = SOURCE, target: str = TARGET) -> ScheduledPair:
    return ScheduledPair(
        name=name,
        source=source,
        target=target,
        schedule=Schedule(every=300),
        options=Options(),
    )


Serve = Callable[..., httpx.Client]


@pytest.fixture
def serve(database: Database) -> Iterator[Serve]:
    """Serves a coordinator's page with some settings; gives a client for it."""
    with contextlib.ExitStack() as stack:

        def start(*pairs: ScheduledPair, **settings: object) -> httpx.Client:
            given = {"sync_web_port": free_port(), "sync_api_token": TOKEN} | settings
            registry = process_registry()
            url = stack.enter_context(
                coordinator_served(Settings.model_validate(given), database, pairs, registry)
            )
            assert url is not None
            url = url.replace("0.0.0.0", "127.0.0.1")
            return stack.enter_context(httpx.Client(base_url=url, timeout=30))

        yield start


@pytest.fixture
def web(serve: Serve, database: Database) -> httpx.Client:
    """A client of a server with one pair."""
    pair_state.register(database, [pair()])
    return serve(pair())


def change(web: httpx.Client, path: str, *, token: str = TOKEN, **body: object) -> httpx.Response:
    """Ask for a change, as the page does."""
    return web.post(path, json=body, headers={"authorization": f"Bearer {token}"})
