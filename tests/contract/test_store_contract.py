"""What every store does, on real servers. Results are read back with chromadb's own client."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from chromadb.api import ClientAPI

from tasks.compare import compare, plan_writes
from tasks.errors import CollectionNotFound, StoreRefused
from tasks.records import Metadata, RecordBatch
from tasks.stores import chroma_http
from tasks.stores.address import parse_address
from tasks.stores.base import Collection, Store
from tasks.stores.chroma_http import ChromaHttpStore
from tasks.stores.definitions import losses, without_index
from tasks.stores.transport import Transport
from tasks.vectors import Vectors

Make = Callable[..., Collection]

METADATA: Metadata = {
    "text": "é 漢 🎉 \u202e \x00 \x1f \u2028",
    "empty": "",
    "integer": 2**53 + 1,
    "smallest": -(2**63),
    "float": 1.0,
    "small": 1e-5,
    "true": True,
    "false": False,
    "texts": ["a", "", "é"],
    "integers": [1, 2**60],
    "floats": [1.0, 2.5],
    "booleans": [True, False],
    "k" * 300: "long key",
    "dotted.key $ é": 1,
}


@pytest.fixture(scope="session")
def metadata(is_old: bool) -> Metadata:
    """Everything that the server keeps."""
    # 0.6.3 drops lists without a word; the store refuses them, see test_old_server.py.
    return {key: value for key, value in METADATA.items() if not (is_old and type(value) is list)}


def records(*ids: str, dimension: int = 3, **columns: Any) -> RecordBatch:
    generator = np.random.default_rng(len(ids))
    absent: list[None] = [None] * len(ids)
    return RecordBatch(
        ids=list(ids),
        vectors=Vectors.of(
            columns.get(
                "embeddings", generator.standard_normal((len(ids), dimension)).astype(np.float32)
            )
        ),
        documents=columns.get("documents", absent),
        metadatas=columns.get("metadatas", absent),
        uris=columns.get("uris", absent),
    )


def numbered(count: int, *, start: int = 0, **columns: Any) -> RecordBatch:
    return records(*(f"r{number}" for number in range(start, start + count)), **columns)


def seen(client: ClientAPI, collection: Collection, ids: list[str]) -> dict[str, Any]:
    """What Chroma's own client reads, each record as [vector, document, metadata, uri]."""
    got: Any = client.get_collection(collection.name).get(
        ids=ids, include=["embeddings", "documents", "metadatas", "uris"]
    )
    columns = (got[key] for key in ("ids", "embeddings", "documents", "metadatas", "uris"))
    return {
        id_: [np.float32(vector).tolist(), document, metadata or None, uri]
        for id_, vector, document, metadata, uri in zip(*columns, strict=True)
    }


def expected(batch: RecordBatch) -> dict[str, Any]:
    rows = zip(batch.embeddings.tolist(), batch.documents, batch.metadatas, batch.uris, strict=True)
    return dict(zip(batch.ids, map(list, rows), strict=True))


def same_with_types(one: Any, other: Any) -> bool:
    """Equal, with 1, 1.0 and True apart."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


# Definitions ----------------------------------------------------------------------------------


def test_a_store_that_is_there_passes_the_check(store: Store) -> None:
    store.check()


def test_collections_are_listed_by_name(store: Store, client: ClientAPI) -> None:
    prefix = uuid4().hex
    for end in ("b", "c", "a"):
        client.create_collection(f"{prefix}-{end}", embedding_function=None)
    names = [found.name for found in store.collections()]
    assert names == sorted(names)
    assert [name for name in names if name.startswith(prefix)] == [
        f"{prefix}-{end}" for end in "abc"
    ]


def test_many_collections_are_listed_over_pages(
    store: Store, client: ClientAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chroma_http, "_COLLECTIONS_PAGE", 2)
    for _ in range(5):
        client.create_collection(f"p-{uuid4().hex}", embedding_function=None)
    assert len(store.collections()) == client.count_collections()


def test_a_collection_is_found_by_its_name(store: Store, make: Make, client: ClientAPI) -> None:
    made = make("cosine", metadata={"about": "x"})
    assert made.id == client.get_collection(made.name).id
    assert without_index(made.metadata) == {"about": "x"}
    assert (made.dimension, made.space) == (None, "cosine")
    client.get_collection(made.name).add(ids=["a"], embeddings=np.ones((1, 3), np.float32))
    assert store.collection(made.name).dimension == 3


def test_a_collection_that_is_not_there_is_told_with_some_that_are(
    store: Store, make: Make
) -> None:
    make()
    with pytest.raises(CollectionNotFound, match=r"'no/such ü\?'.*there are: "):
        store.collection("no/such ü?")


def test_a_deleted_collection_is_not_found_under_its_id(
    store: Store, make: Make, client: ClientAPI
) -> None:
    made = make()
    client.delete_collection(made.name)
    client.create_collection(made.name, embedding_function=None)
    for call in (
        lambda: store.count(made),
        lambda: list(store.ids(made)),
        lambda: store.read(made, ["a"]),
        lambda: store.upsert(made, records("a")),
        lambda: store.delete(made, ["a"]),
    ):
        with pytest.raises(CollectionNotFound, match=made.name):
            call()


DEFINITIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "metadata": {"metadata": {"text": "é", "number": 1, "float": 1.0, "flag": True}},
    "index": {
        "configuration": {
            "hnsw": {
                "space": "cosine",
                "ef_construction": 150,
                "max_neighbors": 24,
                "ef_search": 77,
                "num_threads": 3,
                "batch_size": 50,
                "sync_threshold": 500,
                "resize_factor": 1.5,
            }
        }
    },
    "index in metadata": {
        "metadata": {
            "hnsw:space": "ip",
            "hnsw:M": 40,
            "hnsw:construction_ef": 130,
            "hnsw:search_ef": 33,
            "hnsw:num_threads": 3,
            "hnsw:batch_size": 77,
            "hnsw:sync_threshold": 888,
            "about": "x",
        }
    },
    "embedding function": {
        "configuration": {
            "embedding_function": {
                "type": "known",
                "name": "default",
                "config": {},
            }
        }
    },
    "index in metadata and embedding function": {
        "metadata": {"hnsw:space": "cosine", "hnsw:batch_size": 77},
        "configuration": {"embedding_function": {"type": "known", "name": "default", "config": {}}},
    },
}


@pytest.mark.parametrize("kind", DEFINITIONS)
@pytest.mark.usefixtures("not_old")
def test_a_copy_of_an_empty_collection_loses_nothing(
    store: Store, client: ClientAPI, new_name: str, kind: str
) -> None:
    # Empty, 1.5.9 takes its schema for one that says nothing, and would forget a function of it.
    source = post_collection(store, {"name": new_name, **DEFINITIONS[kind]})
    made = store.create(replace(source, name=f"{new_name}-copy"))
    assert losses(source, made) == []
    assert losses(made, source) == []
    copy, original = client.get_collection(made.name), client.get_collection(new_name)
    assert _definition(copy) == _definition(original)


def test_what_a_collection_lacks_of_another_is_told(store: Store, make: Make) -> None:
    wanted = make("cosine", metadata={"about": "x"})
    other = store.create(
        Collection.new(
            f"{wanted.name}-other", configuration={"hnsw": {"space": "l2", "ef_search": 9}}
        )
    )
    assert sorted(losses(wanted, other)) == [
        "hnsw ef_search is 100 on the source, 9 on the target",
        "metadata 'about' is 'x' on the source, missing on the target",
        "space is cosine on the source, l2 on the target",
    ]


def post_collection(store: Store, body: dict[str, Any]) -> Collection:
    """Made over the API itself: Chroma's client cannot say all that a server takes."""
    transport = Transport(store.endpoint, label="source", headers={})
    path = "/api/v2/tenants/default_tenant/databases/default_database/collections"
    transport.post(path, json.dumps(body).encode(), operation="create")
    transport.close()
    return store.collection(body["name"])


def _definition(collection: Any) -> list[Any]:
    return [
        collection.configuration_json,
        collection.metadata,
        collection.schema.serialize_to_json(),
    ]


@pytest.mark.parametrize("kind", DEFINITIONS)
@pytest.mark.usefixtures("not_old")
def test_a_definition_is_made_again_with_everything(
    store: Store, client: ClientAPI, new_name: str, kind: str
) -> None:
    post_collection(store, {"name": new_name, **DEFINITIONS[kind]})
    source = client.get_collection(new_name)
    source.add(
        ids=["a"],
        embeddings=np.ones((1, 3), np.float32),
        metadatas=[{"discovered": 1}],
        documents=["d"],
    )

    made = store.create(replace(store.collection(new_name), name=f"{new_name}-copy"))
    copy = client.get_collection(f"{new_name}-copy")
    copy.add(
        ids=["a"],
        embeddings=np.ones((1, 3), np.float32),
        metadatas=[{"discovered": 1}],
        documents=["d"],
    )

    assert made.id == copy.id != source.id
    # Once both hold the same records: the server adds the metadata keys it meets to the schema.
    copy = client.get_collection(f"{new_name}-copy")
    source = client.get_collection(new_name)
    assert _definition(copy) == _definition(source)


@pytest.mark.usefixtures("not_old")
def test_a_schema_that_the_server_refuses_leaves_the_configuration(
    store: Store, make: Make, client: ClientAPI
) -> None:
    source = make("ip")
    schema = json.loads(json.dumps(source.schema))
    schema["keys"]["sparse"] = {
        "sparse_vector": {"sparse_vector_index": {"enabled": True, "config": {"bm25": True}}}
    }
    made = store.create(replace(source, name=f"{source.name}-copy", schema=schema))
    assert made.space == "ip"
    assert client.get_collection(made.name).id == made.id


def test_creating_again_gives_what_is_there_and_changes_nothing(
    store: Store, make: Make, client: ClientAPI
) -> None:
    made = make("cosine", metadata={"about": "first"})
    client.get_collection(made.name).add(ids=["a"], embeddings=np.ones((1, 3), np.float32))
    again = store.create(replace(made, metadata={"about": "second"}))
    assert (again.id, again.metadata, again.dimension) == (made.id, made.metadata, 3)
    assert client.get_collection(made.name).count() == 1


# Changing and dropping ------------------------------------------------------------------------


def test_a_renamed_collection_keeps_its_id_and_records(
    store: Store, make: Make, client: ClientAPI
) -> None:
    made = make("cosine", metadata={"about": "x"})
    store.add(made, records("a", documents=["d"]))
    name = f"{made.name}-renamed"
    for before in (made, made):  # again with the old name, as after an answer that was lost
        renamed = store.modify(before, name=name)
        assert (renamed.id, renamed.name, renamed.dimension) == (made.id, name, 3)
        assert (renamed.metadata, renamed.space) == (made.metadata, "cosine")
    assert client.get_collection(name).id == made.id
    assert seen(client, renamed, ["a"])["a"][1] == "d"
    with pytest.raises(CollectionNotFound):
        store.collection(made.name)


def test_metadata_is_replaced_as_a_whole_and_can_be_removed(
    store: Store, make: Make, client: ClientAPI
) -> None:
    made = make(metadata={"old": 1, "kept": "x"})
    text, wanted = "é \x00", {"kept": "y", "big": 2**53 + 1, "float": 1.0, "flag": True}
    changed = store.modify(made, metadata={**wanted, "text": text})
    assert same_with_types(changed.metadata, {**wanted, "text": text})
    assert client.get_collection(made.name).metadata == {**wanted, "text": text}
    for current in (made, changed):
        assert store.modify(current, metadata={}).metadata is None
        assert not client.get_collection(made.name).metadata


def test_name_and_metadata_change_together(store: Store, make: Make, client: ClientAPI) -> None:
    made = make(metadata={"old": 1})
    store.modify(made, name=f"{made.name}-new", metadata={"new": 2})
    assert client.get_collection(f"{made.name}-new").metadata == {"new": 2}


def test_the_index_is_what_it_was_whatever_the_new_metadata_says(
    store: Store, make: Make, client: ClientAPI
) -> None:
    plain = make("cosine", metadata={"about": "x"})
    changed = store.modify(plain, metadata={"hnsw:space": "l2", "hnsw:M": 99, "about": "y"})
    metadata = client.get_collection(plain.name).metadata
    assert (changed.space, without_index(metadata)) == ("cosine", {"about": "y"})
    definition = Collection.new(f"{plain.name}-2", configuration={})
    in_metadata = store.create(replace(definition, metadata={"hnsw:space": "ip", "hnsw:M": 20}))
    changed = store.modify(in_metadata, metadata={"hnsw:space": "l2", "about": "y"})
    assert changed.metadata == {"hnsw:space": "ip", "hnsw:M": 20, "about": "y"}
    assert store.modify(changed, metadata={}).space == "ip"


def test_a_name_that_cannot_be_had_changes_nothing(
    store: Store, make: Make, client: ClientAPI
) -> None:
    made = make(metadata={"about": "x"})
    client.create_collection(f"{made.name}-taken", embedding_function=None)
    for name, says in ((f"{made.name}-taken", "another collection has the name"), ("x", "name")):
        with pytest.raises(StoreRefused, match=says):
            store.modify(made, name=name, metadata={"about": "y"})
    assert store.collection(made.name) == made


def test_only_the_collection_of_that_id_is_dropped(
    store: Store, make: Make, client: ClientAPI
) -> None:
    made = make()
    store.add(made, records("a"))
    store.drop(replace(made, id=uuid4()))
    assert client.get_collection(made.name).count() == 1
    for _ in range(2):
        store.drop(made)
        assert made.name not in {one.name for one in client.list_collections()}
    client.create_collection(made.name, embedding_function=None)
    store.drop(made)
    assert client.get_collection(made.name).id != made.id
    with pytest.raises(CollectionNotFound):
        store.modify(made, name=f"{made.name}-renamed")
    with pytest.raises(CollectionNotFound):
        store.modify(made, metadata={"about": "x"})


# Reading and writing --------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["add", "upsert"])
def test_records_come_through_whole(
    store: Store, make: Make, client: ClientAPI, metadata: Metadata, verb: str
) -> None:
    collection = make()
    batch = records(
        *("plain", "é 漢 🎉", " ", "with\nline\ttab\x00\x1f", "a/b?c=d&e%20#", "long" * 200),
        documents=["text", "", None, "é\x00\u2028", "x" * 100_000, None],
        metadatas=[metadata, None, {"k": 0.1}, None, {"only": ""}, {"k": False}],
        uris=["file:///é", None, "", None, "u" * 2000, None],
    )
    assert getattr(store, verb)(collection, batch) == []
    assert same_with_types(seen(client, collection, batch.ids), expected(batch))
    again = store.read(collection, batch.ids)
    assert not compare(batch, again, space="l2")
    assert same_with_types(expected(again), expected(batch))


def test_vectors_of_all_magnitudes_come_through_bit_by_bit(
    store: Store, make: Make, client: ClientAPI
) -> None:
    generator = np.random.default_rng(1)
    exponents = generator.uniform(-37, 18, (200, 16))
    vectors = (10**exponents * generator.choice([-1, 1], (200, 16))).astype(np.float32)
    vectors[0, :4] = [0.0, -0.0, np.finfo(np.float32).tiny, -np.finfo(np.float32).tiny]
    collection, batch = make("ip"), numbered(200, embeddings=vectors)
    store.add(collection, batch)
    assert store.read(collection, batch.ids).embeddings.tobytes() == vectors.tobytes()
    got: Any = client.get_collection(collection.name).get(ids=["r7"], include=["embeddings"])
    assert np.float32(got["embeddings"][0]).tobytes() == vectors[7].tobytes()


def test_vectors_are_written_alike_to_a_server_without_base64(
    store: Store, make: Make, client: ClientAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_write_limits", lambda: (10, False))
    collection, batch = make(), numbered(25, dimension=64)
    store.add(collection, batch)
    assert seen(client, collection, batch.ids) == expected(batch)


def test_cosine_vectors_stay_within_the_tolerance_copy_after_copy(
    store: Store, make: Make, client: ClientAPI, new_name: str
) -> None:
    first = make("cosine")
    second = store.create(replace(first, name=f"{new_name}-copy"))
    batch = numbered(300, dimension=96)
    store.add(first, batch)
    once = store.read(first, batch.ids)
    store.add(second, once)
    twice = store.read(second, batch.ids)
    assert client.get_collection(second.name).count() == 300
    assert once.embeddings.tobytes() != twice.embeddings.tobytes()
    assert not compare(once, twice, space="cosine")
    assert compare(once, twice, space="l2")


def test_floats_in_metadata_that_the_server_moves_are_the_same(
    store: Store, make: Make, new_name: str, is_old: bool
) -> None:
    first = make()
    second = store.create(replace(first, name=f"{new_name}-copy"))
    generator = np.random.default_rng(2)
    floats = [{"v": float(number)} for number in 10 ** generator.uniform(-12, 12, 500)]
    batch = numbered(500, metadatas=floats)
    store.add(first, batch)
    once = store.read(first, batch.ids)
    store.add(second, once)
    assert (once.metadatas == batch.metadatas) == is_old  # which moves none
    assert not compare(batch, once, space="l2")
    assert not compare(once, store.read(second, batch.ids), space="l2")


def test_reading_keeps_the_order_asked_for_and_leaves_out_what_is_missing(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, batch = make(), numbered(50, documents=[f"d{n}" for n in range(50)])
    store.add(collection, batch)
    wanted = [f"r{number}" for number in (49, 3, 1000, 20, 7)]
    found = store.read(collection, wanted)
    assert found.ids == ["r49", "r3", "r20", "r7"]
    assert found.documents == ["d49", "d3", "d20", "d7"]
    rows = [batch.ids.index(id_) for id_ in found.ids]
    assert found.embeddings.tobytes() == batch.embeddings[rows].tobytes()
    # More ids than one request takes.
    monkeypatch.setattr(chroma_http, "_READ_BYTES", 0)
    many = [*reversed(batch.ids), *(f"no{number}" for number in range(200))]
    assert store.read(collection, many).ids == many[:50]


def test_nothing_is_read_written_or_deleted_without_a_request(store: Store, make: Make) -> None:
    collection = replace(make(), id=uuid4())  # every request would fail
    assert len(store.read(collection, [])) == 0
    assert store.add(collection, records()) == []
    assert store.upsert(collection, records()) == []
    store.delete(collection, [])
    assert store.query(collection, np.empty((0, 3), np.float32), 1) == []


def test_missing_records_read_as_an_empty_batch(store: Store, make: Make) -> None:
    collection = make()
    assert len(store.read(collection, ["a"])) == 0
    store.add(collection, records("b"))
    assert len(store.read(collection, ["a"])) == 0


def test_adding_leaves_what_is_there_as_it_is(store: Store, make: Make, client: ClientAPI) -> None:
    collection, before = make(), records("a", documents=["first"])
    store.add(collection, before)
    assert store.add(collection, records("a", "b", documents=["second", "x"])) == []
    assert seen(client, collection, ["a"]) == expected(before)
    assert store.count(collection) == 2


def test_a_removed_key_is_no_matter_to_an_added_record(
    store: Store, make: Make, client: ClientAPI
) -> None:
    collection = make()
    batch = records("a", "b", metadatas=[{"gone": None, "k": 1}, {"gone": None}])
    assert store.add(collection, batch) == []
    there = seen(client, collection, ["a", "b"])
    assert [there["a"][2], there["b"][2]] == [{"k": 1}, None]


def test_upserting_merges(store: Store, make: Make, client: ClientAPI) -> None:
    collection = make()
    store.add(
        collection,
        records("a", documents=["d"], uris=["u"], metadatas=[{"x": 1, "y": 2, "z": ""}]),
    )
    change = records("a", metadatas=[{"x": None, "y": 3, "z": None, "never": None}])
    assert store.upsert(collection, change) == []
    assert seen(client, collection, ["a"])["a"][1:] == ["d", {"y": 3}, "u"]


def test_deleting(store: Store, make: Make, client: ClientAPI) -> None:
    collection = make()
    store.add(collection, records("a", "b", "c"))
    store.delete(collection, ["a", "never there", "c"])
    store.delete(collection, ["a"])
    assert client.get_collection(collection.name).get()["ids"] == ["b"]
    assert store.count(collection) == 1


def test_the_nearest_come_first(store: Store, make: Make) -> None:
    collection = make()
    line = np.array([[n, 0, 0] for n in range(30)], dtype=np.float32)
    store.add(collection, numbered(30, embeddings=line))
    at = np.array([[0.1, 0, 0], [28.9, 0, 0]], dtype=np.float32)
    assert store.query(collection, at, 3) == [["r0", "r1", "r2"], ["r29", "r28", "r27"]]


def test_a_planned_write_makes_the_target_equal(
    store: Store, make: Make, client: ClientAPI, metadata: Metadata, is_old: bool
) -> None:
    collection = make()
    target = records(
        *("same", "keys", "all keys", "types", "document", "uri", "emptied", "vector", "extra"),
        documents=["d", "d", "d", None, "gone", "d", "d", None, None],
        metadatas=[
            *({"k": 1}, {"k": 1, "l": 2}, {"k": 1}, {"k": 1, "l": 1 if is_old else [1]}),
            *({"k": 1}, None, None, None, {"k": 1}),
        ],
        uris=["u", None, None, None, None, "gone", "u", None, None],
    )
    source = records(
        *("new", "vector", "emptied", "uri", "document", "types", "all keys", "keys", "same"),
        documents=["n", None, "", "d", None, None, "d", "d", "d"],
        metadatas=[
            *(metadata, {"new": True if is_old else [True]}, None, None),
            *({"k": 1}, {"k": 1.0, "l": "1"}, None, {"l": 2}, {"k": 1}),
        ],
        uris=[None, None, "", None, None, None, None, "added", "u"],
    )
    store.add(collection, target)
    writes = plan_writes(
        source,
        store.read(collection, target.ids),
        compare(source, store.read(collection, target.ids), space="l2"),
    )
    assert (writes.add.ids, writes.delete) == (["new"], ["extra"])
    assert writes.replace.ids == ["uri", "document"]
    store.delete(collection, [*writes.delete, *writes.replace.ids])
    for batch in (writes.replace, writes.add):
        assert store.add(collection, batch) == []
    assert store.upsert(collection, writes.upsert) == []

    assert same_with_types(seen(client, collection, source.ids), expected(source))
    assert client.get_collection(collection.name).count() == len(source)
    assert not compare(source, store.read(collection, source.ids), space="l2")


# Limits and refusals --------------------------------------------------------------------------


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes in bytes of all request bodies that are sent."""
    sizes: list[int] = []
    post = Transport.post

    def measured(self: Transport, path: str, body: bytes, *, operation: str) -> Any:
        sizes.append(len(body))
        return post(self, path, body, operation=operation)

    monkeypatch.setattr(Transport, "post", measured)
    return sizes


def test_more_megabytes_than_a_request_may_hold(
    store: Store, make: Make, client: ClientAPI, posted: list[int]
) -> None:
    # In metadata, which is not estimated but found out when the request is measured; a document
    # of a megabyte would take the server half a second to index.
    collection, batch = make(), numbered(45, metadatas=[{"big": "x" * 1_000_000}] * 45)
    assert store.add(collection, batch) == []
    assert client.get_collection(collection.name).count() == 45
    assert max(posted) < 32 * 1024 * 1024
    assert len(posted) == 2


def test_long_documents_are_split_by_their_bytes(
    store: Store, make: Make, client: ClientAPI, posted: list[int]
) -> None:
    small = ChromaHttpStore(parse_address(store.endpoint), headers={}, max_request_bytes=300_000)
    words = " ".join(f"word{number}" for number in range(10_000))
    collection = make()
    batch = numbered(12, documents=[f"{n} {words}" for n in range(12)])
    huge = records("huge", documents=["x" * 300_000])
    refusals = [*small.add(collection, batch), *small.add(collection, huge)]
    small.close()
    assert [refusal.id for refusal in refusals] == ["huge"]
    assert "0.3 MB" in refusals[0].reason
    assert client.get_collection(collection.name).get()["documents"] == batch.documents
    assert max(posted) <= 300_000


@pytest.mark.parametrize("verb", ["add", "upsert"])
def test_refused_records_are_named_and_the_others_written(
    store: Store, make: Make, client: ClientAPI, is_old: bool, verb: str
) -> None:
    collection, batch = make(), numbered(200, metadatas=[{"k": n} for n in range(200)])
    batch.embeddings[17, 1] = np.nan
    batch.metadatas[60] = {"#reserved": 1}
    batch.metadatas[61] = {"nested": {"a": 1}}
    batch.metadatas[199] = {"sparse": {"#type": "sparse_vector", "indices": [1], "values": [0.5]}}
    bad = ["r17", "r60", "r61", "r199"]
    if is_old:
        bad.remove("r60")  # it reserves no names
    refusals = getattr(store, verb)(collection, batch)
    assert [refusal.id for refusal in refusals] == bad
    assert all(refusal.reason and "\n" not in refusal.reason for refusal in refusals)
    assert "NaN" in refusals[0].reason
    assert ("is an object" if is_old else "Sparse") in refusals[-1].reason
    there = client.get_collection(collection.name).get()["ids"]
    assert sorted(there) == sorted(set(batch.ids) - set(bad))


def test_an_empty_id_is_refused_by_the_server_alone(
    store: Store, make: Make, client: ClientAPI, is_old: bool
) -> None:
    collection, batch = make(), records("a", "", "c")
    refused = [] if is_old else [""]  # 0.6.3 takes it
    assert [refusal.id for refusal in store.upsert(collection, batch)] == refused
    there = client.get_collection(collection.name).get()["ids"]
    assert there == [id_ for id_ in batch.ids if id_ not in refused]


@pytest.mark.parametrize("known", [True, False])
def test_a_wrong_dimension_refuses_all_with_few_requests(
    store: Store, make: Make, client: ClientAPI, posted: list[int], known: bool
) -> None:
    stale = make()  # read before the first record gave it a dimension
    client.get_collection(stale.name).add(ids=["a"], embeddings=np.ones((1, 3), np.float32))
    collection = store.collection(stale.name) if known else stale
    batch = numbered(1000, dimension=4)
    refusals = store.add(collection, batch)
    assert [refusal.id for refusal in refusals] == batch.ids
    assert refusals[0].reason == "the vector has 4 dimensions, the collection 3"
    assert len(posted) == (0 if known else 1)
    assert client.get_collection(stale.name).count() == 1


# Listing ids ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thousands() -> RecordBatch:
    return numbered(2600, dimension=2)


def test_ids_are_listed_in_pages(store: Store, make: Make, thousands: RecordBatch) -> None:
    collection = make()
    assert list(store.ids(collection)) == []
    store.add(collection, thousands)
    pages = list(store.ids(collection, page_size=1000))
    assert [id_ for page in pages for id_ in page] == thousands.ids
    assert [len(page) for page in pages] == [1000, 1000, 600]


def test_ids_are_listed_once_though_others_are_deleted_and_added(
    store: Store, make: Make, client: ClientAPI, thousands: RecordBatch
) -> None:
    collection = make()
    store.add(collection, thousands)
    other = client.get_collection(collection.name)
    generator = np.random.default_rng(3)
    untouched, given = set(thousands.ids), list[str]()
    for turn, page in enumerate(store.ids(collection, page_size=200)):
        given += page
        # Some of those given, just now and long ago, and some of those to come.
        gone = {thousands.ids[row] for row in generator.integers(0, 2600, 120)}
        gone |= set(page[-40:])
        other.delete(ids=sorted(gone))
        untouched -= gone
        if turn == 3:  # back again, at the end
            other.add(ids=[page[-1]], embeddings=np.ones((1, 2), np.float32))
    assert len(given) > len(untouched) > 500
    assert untouched <= set(given)
    assert len([id_ for id_ in given if id_ in untouched]) == len(untouched)


def test_a_listing_survives_the_deletion_of_all_that_it_gave_but_a_tenth(
    store: Store, make: Make, client: ClientAPI, thousands: RecordBatch
) -> None:
    collection = make()
    store.add(collection, thousands)
    pages = store.ids(collection, page_size=1500)
    first = next(pages)
    client.get_collection(collection.name).delete(ids=first[:1300])
    rest = [id_ for page in pages for id_ in page]
    assert first + rest == thousands.ids
