"""Real Chroma servers for the contract suite: one for each adapter, for the whole session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import urlopen
from uuid import uuid4

import chromadb
import pytest
from chromadb.api import ClientAPI
from chromadb.config import Settings

from tasks.stores.address import parse_address
from tasks.stores.base import Collection, Store
from tasks.stores.open import open_store
from tasks.stores.server import ChromaServer
from tests.old_chroma import PlainClient, old_chroma


@pytest.fixture(scope="session")
def http_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with ChromaServer(tmp_path_factory.mktemp("server")) as server:
        store = open_store(parse_address(server.endpoint), environ={})
        yield store
        store.close()


@pytest.fixture(scope="session")
def directory_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    address = parse_address(str(tmp_path_factory.mktemp("directory") / "new"))
    store = open_store(address, environ={}, create=True)
    yield store
    store.close()


@pytest.fixture(scope="session")
def old_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with old_chroma(tmp_path_factory.mktemp("old")) as url:
        store = open_store(parse_address(url), environ={})
        yield store
        store.close()


@pytest.fixture(scope="session", params=["http", "directory", "old"])
def store(request: pytest.FixtureRequest) -> Store:
    """The adapter under test. Whatever it does is checked with chromadb's own client."""
    found: Store = request.getfixturevalue(f"{request.param}_store")
    return found


@contextmanager
def connected(endpoint: str) -> Iterator[ClientAPI]:
    """Chroma's own client."""
    parts = urlsplit(endpoint)
    client: Any = chromadb.HttpClient(
        host=parts.hostname or "",
        port=parts.port or 0,
        settings=Settings(anonymized_telemetry=False),
    )
    yield client
    client.close()
    # It leaves the connections of its two halves open.
    for half in (client, client._admin_client):
        half._server._session.close()


@pytest.fixture(scope="session")
def is_old(store: Store) -> bool:
    """Whether it is 0.6.3 that is tested, which cannot hold, or does not check, all that is new."""
    with urlopen(f"{store.endpoint}/api/v2/version") as answer:
        return bool(answer.read() == b'"0.6.3"')


@pytest.fixture(scope="session")
def not_old(is_old: bool) -> None:
    if is_old:
        pytest.skip("0.6.3 has neither schemas nor configurations: see test_old_server.py")


@pytest.fixture(scope="session")
def client(store: Store, is_old: bool) -> Iterator[ClientAPI]:
    """Chroma's own client on the same store, or plain HTTP: what it says is what is there."""
    if is_old:
        yield cast(ClientAPI, PlainClient(store.endpoint))
        return
    with connected(store.endpoint) as client:
        yield client


@pytest.fixture
def new_name() -> str:
    return f"c-{uuid4().hex}"


@pytest.fixture
def make(store: Store, client: ClientAPI, new_name: str) -> Callable[..., Collection]:
    """Makes this test's collection with Chroma's own client."""

    def create(space: str = "l2", **arguments: object) -> Collection:
        client.create_collection(
            new_name,
            configuration={"hnsw": {"space": space}},  # type: ignore[arg-type]
            embedding_function=None,
            **arguments,  # type: ignore[arg-type]
        )
        return store.collection(new_name)

    return create
