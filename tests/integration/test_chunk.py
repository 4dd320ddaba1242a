"""What a chunk does and leaves unproven, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import numpy as np
import pytest

from tasks.chunk import sync_chunk, verify_chunk
from tasks.records import RecordBatch
from tasks.stores.address import parse_address
from tasks.stores.base import Collection, Store
from tasks.stores.open import open_store
from tasks.stores.server import ChromaServer
from tasks.vectors import Vectors


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with ChromaServer(tmp_path_factory.mktemp("store")) as server:
        store = open_store(parse_address(server.endpoint), environ={})
        yield store
        store.close()


def collection(store: Store, *ids: str, document: str = "same") -> Collection:
    made = store.create(Collection.new(f"c-{uuid4().hex}", configuration={"hnsw": {"space": "l2"}}))
    store.add(
        made,
        RecordBatch(
            ids=list(ids),
            vectors=Vectors.of(np.ones((len(ids), 2), dtype=np.float32)),
            documents=[document] * len(ids),
            metadatas=[None] * len(ids),
            uris=[None] * len(ids),
        ),
    )
    return made


def test_what_is_alike_is_proven_by_a_first_attempt_alone(store: Store) -> None:
    ids = ["a", "b", "c"]
    source, target = collection(store, *ids), collection(store, *ids)
    first = sync_chunk(store, store, source, target, ids, may_delete=False)
    again = sync_chunk(store, store, source, target, ids, may_delete=False, is_first=False)
    assert (first.unchanged, first.unproven) == (3, [])
    assert first.alike_digest == first.target_digest == first.source_digest
    # A write of the attempt before it may come later than what was read.
    assert (again.unchanged, [place for place, _ in again.unproven]) == (3, [0, 1, 2])
    assert int(again.alike_digest, 16) == 0
    assert all(digest > 0 for _, digest in again.unproven)


def test_what_is_written_is_to_be_verified(store: Store) -> None:
    ids = ["a", "b", "c", "d"]
    source = collection(store, "a", "b", "c")
    target = collection(store, "b", "d")
    changed = collection(store, "c", document="changed")
    outcome = sync_chunk(store, store, source, target, ids, may_delete=True)
    assert (outcome.added, outcome.deleted, outcome.unchanged) == (2, 1, 1)
    assert [place for place, _ in outcome.unproven] == [0, 2, 3]
    assert outcome.unproven[-1] == (3, 0)  # the source has none
    proof = verify_chunk(store, store, source, target, ids)
    assert (proof.unchanged, proof.findings) == (3, [("?", "d", ())])
    # The digest of a record that was written is what its verification sees, while it is the same.
    other = verify_chunk(store, store, source, changed, ids)
    written = dict(outcome.unproven)
    assert {place: digest for place, digest in other.unproven if place in written} == {
        0: written[0],
        2: written[2],
    }


def test_nothing_is_deleted_that_was_not_planned(store: Store) -> None:
    source, target = collection(store, "a"), collection(store, "a", "b")
    kept = sync_chunk(store, store, source, target, ["a", "b"], may_delete=False)
    assert (kept.deleted, kept.unproven) == (0, [(1, 0)])
    assert store.count(target) == 2
    assert verify_chunk(store, store, source, target, ["a", "b"]).extra == 1
    one_way = verify_chunk(store, store, source, target, ["a", "b"], one_way=True)
    assert (one_way.extra, one_way.findings, one_way.unproven) == (0, [], [])
