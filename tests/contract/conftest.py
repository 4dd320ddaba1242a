"""Real Chroma servers for the contract suite: one for each adapter, for the whole session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import chromadb
import pytest
from chromadb.api import ClientAPI
from chromadb.config import Settings

from tasks.stores.address import parse_address
from tasks.stores.base import Collection, Store
from tasks.stores.open import open_store
from tasks.stores.server import ChromaServer


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


@pytest.fixture(scope="session", params=["http", "directory"])
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
def client(store: Store) -> Iterator[ClientAPI]:
    """Chroma's own client on the same store: what it says is what is there."""
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
