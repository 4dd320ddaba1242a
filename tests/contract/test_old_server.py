"""Between a server of today and 0.6.3: what gets across, and that what does not is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from chromadb.api import ClientAPI

from tasks.records import Metadata
from tasks.stores.base import Store
from tasks.stores.definitions import losses
from tests.contract.test_store_contract import (
    DEFINITIONS,
    METADATA,
    numbered,
    post_collection,
    records,
    same_with_types,
    seen,
)
from tests.old_chroma import PlainClient

FUNCTION = "the embedding function is 'default' on the source, None on the target"


@pytest.fixture
def old_client(old_store: Store) -> ClientAPI:
    return cast(ClientAPI, PlainClient(old_store.endpoint))


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_a_definition_survives_the_way_there_and_back(
    http_store: Store, old_store: Store, new_name: str, kind: str
) -> None:
    source = post_collection(http_store, {"name": new_name, **DEFINITIONS[kind]})
    there = old_store.create(source)
    lost = [FUNCTION] if "embedding function" in kind else []
    assert losses(source, there) == lost
    back = http_store.create(replace(there, name=f"{new_name}-back"))
    assert losses(there, back) == []
    assert losses(source, back) == lost
    assert (there.space, back.space) == (source.space, source.space)


def test_a_schema_that_says_something_is_missed(
    http_store: Store, old_store: Store, new_name: str
) -> None:
    plain = post_collection(http_store, {"name": new_name})
    schema: dict[str, Any] = plain.schema or {}
    off = {"enabled": False, "config": {}}
    schema["keys"]["title"] = {"string": {"string_inverted_index": off}}
    source = http_store.create(replace(plain, name=f"{new_name}-said", schema=schema))
    assert source.schema is not None
    assert "title" in source.schema["keys"]
    assert losses(source, old_store.create(source)) == [
        "schema: string_inverted_index of 'title' is disabled on the source, enabled on the target"
    ]


@pytest.mark.parametrize("verb", ["add", "upsert"])
def test_what_an_old_server_would_not_keep_whole_is_named_and_not_written(
    old_store: Store, old_client: ClientAPI, new_name: str, verb: str
) -> None:
    collection = old_store.create(post_collection(old_store, {"name": new_name}))
    spoilt: dict[str, Metadata] = {
        "r3": {"k": 1, "tags": ["a", "b"]},
        "r5": {"sparse": {"#type": "sparse_vector", "indices": [1], "values": [0.5]}},
    }
    batch = numbered(10, metadatas=[spoilt.get(f"r{row}", {"k": row}) for row in range(10)])
    batch.embeddings[8, 1] = np.inf
    refusals = getattr(old_store, verb)(collection, batch)
    assert [(refusal.id, refusal.reason) for refusal in refusals] == [
        ("r3", "metadata 'tags' is a list, which Chroma before 1.0 does not store"),
        ("r5", "metadata 'sparse' is an object, which Chroma before 1.0 does not store"),
        ("r8", "the vector holds NaN or infinity, which Chroma before 1.0 does not check"),
    ]
    there = seen(old_client, collection, batch.ids)
    assert there.keys() == set(batch.ids) - {"r3", "r5", "r8"}


def test_a_newer_server_still_takes_lists(http_store: Store, new_name: str) -> None:
    collection = post_collection(http_store, {"name": new_name})
    assert http_store.add(collection, records("a", metadatas=[METADATA])) == []
    (metadata,) = http_store.read(collection, ["a"]).metadatas
    assert same_with_types(metadata, METADATA)
