"""A collection takes another's place, wherever the one who put it there was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import numpy as np
import pytest

from coordinator.publish import discard, publish, staging_name
from tasks.records import RecordBatch
from tasks.stores.address import parse_address
from tasks.stores.base import Collection, Store
from tasks.stores.open import open_store
from tasks.stores.server import ChromaServer
from tasks.vectors import Vectors


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with ChromaServer(tmp_path_factory.mktemp("target")) as server:
        store = open_store(parse_address(server.endpoint), environ={})
        yield store
        store.close()


def make(store: Store, name: str, id_: str) -> Collection:
    collection = store.create(Collection.new(name, configuration={"hnsw": {"space": "l2"}}))
    store.add(
        collection,
        RecordBatch(
            ids=[id_],
            vectors=Vectors.of(np.ones((1, 2), dtype=np.float32)),
            documents=[None],
            metadatas=[None],
            uris=[None],
        ),
    )
    return collection


def held(store: Store, prefix: str) -> dict[str, list[str]]:
    return {
        collection.name: [id_ for page in store.ids(collection) for id_ in page]
        for collection in store.collections()
        if collection.name.startswith(prefix)
    }


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_it_goes_on_from_any_step(store: Store, steps: int) -> None:
    run_id, name = uuid4(), f"docs-{uuid4().hex[:8]}"
    old = make(store, name, "old")
    staged = make(store, staging_name(name, run_id), "new")
    if steps > 0:
        old = store.modify(old, name=f"{name}.old-{run_id.hex[:8]}")
    if steps > 1:
        store.modify(staged, name=name)
    if steps > 2:
        store.drop(old)
    for _ in range(2):
        publish(store, staged, name, run_id)
        assert held(store, name) == {name: ["new"]}


def test_the_first_of_its_name_is_published_too(store: Store) -> None:
    run_id, name = uuid4(), f"docs-{uuid4().hex[:8]}"
    publish(store, make(store, staging_name(name, run_id), "new"), name, run_id)
    assert held(store, name) == {name: ["new"]}


def test_what_is_discarded_goes_alone(store: Store) -> None:
    run_id, name = uuid4(), f"docs-{uuid4().hex[:8]}"
    make(store, name, "old")
    staged = make(store, staging_name(name, run_id), "new")
    discard(store, staged, name, run_id)
    assert held(store, name) == {name: ["old"]}
    published = make(store, staging_name(name, run_id), "newer")
    publish(store, published, name, run_id)
    discard(store, published, name, run_id)  # too late: it is the collection now
    assert held(store, name) == {name: ["newer"]}


def test_long_names_fit_old_servers() -> None:
    assert len(staging_name("n" * 500, uuid4())) <= 63
    assert ".." not in staging_name("n" * 43 + "..x", uuid4())
