"""From Chroma 0.6.3 to the newest and back. The old side is checked by plain HTTP, the new one with
the chromadb client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast
from uuid import uuid4

import numpy as np
import pytest
from chromadb import Collection
from chromadb.api import ClientAPI

from tests.e2e.conftest import Program, Side, everything, open_side
from tests.old_chroma import PlainClient, ask, old_chroma

SPACES = ("l2", "ip", "cosine")
COUNT = 150  # more than the 100 that 0.6.3 keeps outside of its index
DATABASES = "/api/v2/tenants/default_tenant/databases"


@pytest.fixture(scope="module")
def old_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with old_chroma(tmp_path_factory.mktemp("old")) as url:
        yield url


@pytest.fixture
def old(old_url: str) -> Side:
    name = f"db_{uuid4().hex[:8]}"
    ask(f"{old_url}{DATABASES}", {"name": name})
    client = cast(ClientAPI, PlainClient(old_url, database=name))
    return Side(url=f"{old_url}?database={name}", client=client)


@pytest.fixture
def new(servers: tuple[str, str]) -> Side:
    return open_side(servers[0], f"db_{uuid4().hex[:8]}")


@pytest.fixture(params=["new to old", "old to new"])
def pair(request: pytest.FixtureRequest, old: Side, new: Side) -> tuple[Side, Side, dict[str, Any]]:
    """Source, target, and the metadata of a record that only the source takes."""
    if request.param == "new to old":
        return new, old, {"tags": ["a", "b"]}
    return old, new, {"#reserved": 1}


def fill(side: Side, space: str) -> None:
    collection = side.client.create_collection(
        f"in-{space}",
        metadata={"owner": "tests é", "year": 2024, "share": 0.1, "kept": True},
        configuration={"hnsw": {"space": cast(Any, space)}},
        embedding_function=None,
    )
    rows = range(COUNT)
    documents = [
        None,
        "",
        "é 漢 🎉 \u202e \x00 \x1f",
        *(f"document {row} " + "é" * row for row in rows),
    ]
    metadatas = [{"row": row, "half": row / 2, "even": row % 2 == 0, "é": "\x00"} for row in rows]
    collection.add(
        ids=["é 漢 \x00 /?", *(f"id-{row}" for row in rows)],
        embeddings=vectors(COUNT + 1),
        documents=cast(Any, documents[: COUNT + 1]),
        metadatas=cast(Any, [None, *metadatas]),
        uris=cast(Any, [None, *(f"file:///{row}" if row % 3 else None for row in rows)]),
    )


def vectors(count: int, *, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 12)).astype(np.float32)


def opened(side: Side, space: str) -> Collection:
    return side.client.get_collection(f"in-{space}", embedding_function=None)


def same(source: Side, target: Side, space: str, *, but: str = "") -> None:
    """Every record is the same, and so is the distance that is measured."""
    one, other = (everything(side.client, f"in-{space}") for side in (source, target))
    one.pop(but, None)
    assert one.keys() == other.keys()
    assert [record[1:] for record in one.values()] == [other[id_][1:] for id_ in one]
    left = np.array([record[0] for record in one.values()], dtype=np.float32)
    right = np.array([other[id_][0] for id_ in one], dtype=np.float32)
    if space == "cosine":
        np.testing.assert_allclose(left, right, rtol=2**-22)
    else:
        assert left.tobytes() == right.tobytes()
    if not but:
        np.testing.assert_allclose(distances(source, space), distances(target, space), rtol=1e-5)


def distances(side: Side, space: str) -> list[float]:
    server, _, database = side.url.partition("?database=")
    body = {"query_embeddings": vectors(1, seed=2).tolist(), "n_results": 5}
    path = f"{DATABASES}/{database}/collections/{opened(side, space).id}/query"
    found = ask(f"{server}{path}", body | {"include": ["distances"]})
    return list(found["distances"][0])


def test_there_and_back(program: Program, pair: tuple[Side, Side, dict[str, Any]]) -> None:
    source, target, odd = pair
    for space in SPACES:
        fill(source, space)
        opened(source, space).add(ids=["odd"], embeddings=vectors(1), metadatas=[odd])
    source.client.create_collection("empty", embedding_function=None)

    # One record of each collection cannot be held, which is said; the others are there.
    first = program("sync", source.url, target.url, "--chunk-size", "60", "--json")
    assert first.code == 1, first.err
    refused = [
        (failure["collection"], one["id"], "metadata" in one["reason"])
        for failure in first.document["failures"]
        for one in failure["refused"]
    ]
    assert sorted(refused) == [(f"in-{space}", "odd", True) for space in sorted(SPACES)]
    assert first.document["notes"] == []
    for space in SPACES:
        same(source, target, space, but="odd")
        metadata = opened(target, space).metadata or {}
        about = {key: value for key, value in metadata.items() if "hnsw" not in key}
        assert about == {"owner": "tests é", "year": 2024, "share": 0.1, "kept": True}
        opened(source, space).delete(ids=["odd"])
    assert target.client.get_collection("empty", embedding_function=None).count() == 0

    # Nothing is left to be written.
    again = program("sync", source.url, target.url, "--json")
    assert again.code == 0, again.err
    for row in again.document["collections"]:
        assert (row["added"], row["updated"], row["deleted"]) == (0, 0, 0)

    # Changes arrive.
    for space in SPACES:
        changed = opened(source, space)
        changed.update(
            ids=["id-7", "id-8"],
            embeddings=vectors(2, seed=3),
            documents=["changed", "too"],
            metadatas=cast(Any, [{"row": None, "added": "é"}, {"half": 0.1}]),
        )
        changed.delete(ids=["id-9", "id-10", "id-11"])
        changed.add(ids=["later"], embeddings=vectors(1, seed=4))
    third = program("sync", source.url, target.url, "--json")
    assert third.code == 0, third.err
    for row in third.document["collections"]:
        written = (0, 0, 0) if row["name"] == "empty" else (1, 2, 3)
        assert (row["added"], row["updated"], row["deleted"]) == written
    for space in SPACES:
        same(source, target, space)
        assert opened(target, space).get(ids=["id-7"])["documents"] == ["changed"]


def test_a_collection_is_made_without_what_the_target_refuses_of_its_definition(
    program: Program, old: Side, new: Side
) -> None:
    made = old.client.create_collection(
        "odd", metadata={"": 1, "#reserved": "x", "kept": 2}, embedding_function=None
    )
    made.add(ids=["a"], embeddings=vectors(1))
    for _ in range(2):
        done = program("sync", old.url, new.url, "--collection", "odd", "--json")
        assert done.code == 0, done.err
        assert done.document["notes"] == [
            "odd: metadata '' is 1 on the source, missing on the target",
            "odd: metadata '#reserved' is 'x' on the source, missing on the target",
        ]
    there = new.client.get_collection("odd", embedding_function=None)
    assert (there.metadata, there.count()) == ({"kept": 2}, 1)


def test_a_collection_is_published_at_once(
    program: Program, pair: tuple[Side, Side, dict[str, Any]]
) -> None:
    source, target, _ = pair
    fill(source, "cosine")
    before = target.client.create_collection("in-cosine", embedding_function=None)
    done = program("sync", source.url, target.url, "--atomic", "--json")
    assert done.code == 0, done.err
    assert opened(target, "cosine").id != before.id
    assert [one.name for one in target.client.list_collections()] == ["in-cosine"]
    same(source, target, "cosine")
