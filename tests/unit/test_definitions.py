"""Definitions carried from one server to another: what no server of the contract suite can show."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from tasks.records import Metadata
from tasks.stores.base import Collection
from tasks.stores.definitions import (
    creation_requests,
    losses,
    metadata_to_write,
    modification_requests,
)


def definition(**fields: Any) -> Collection:
    empty: dict[str, Any] = {"metadata": None, "configuration": {}, "schema": None}
    return Collection(id=UUID(int=1), name="books", dimension=3, **(empty | fields))


HNSW = {
    "space": "cosine",
    "ef_construction": 150,
    "max_neighbors": 24,
    "ef_search": 100,
    "resize_factor": 1.2,
    "sync_threshold": 1000,
}


DEFAULTS = {
    "space": "l2",
    "ef_construction": 100,
    "max_neighbors": 16,
    "ef_search": 100,
    "resize_factor": 1.2,
    "sync_threshold": 1000,
}


def schema(
    *, hnsw: dict[str, Any] | None = None, keys: dict[str, Any] | None = None, **defaults: Any
) -> dict[str, Any]:
    """As 1.5.9 reports it: everything is told, whatever was asked for."""

    def state(on: bool) -> dict[str, Any]:
        return {"enabled": on, "config": {}}

    config = {"space": "cosine", "source_key": "#document", "hnsw": hnsw or {}}
    inverted = {kind: {f"{kind}_inverted_index": state(True)} for kind in ("int", "float", "bool")}
    return {
        "defaults": {
            "string": {"fts_index": state(False), "string_inverted_index": state(True)},
            "float_list": {"vector_index": {"enabled": False, "config": config}},
            "sparse_vector": {
                "sparse_vector_index": {
                    "enabled": False,
                    "config": {"embedding_function": {"type": "unknown"}, "bm25": False},
                }
            },
            **inverted,
            **defaults,
        },
        "keys": {
            "#document": {
                "string": {"fts_index": state(True), "string_inverted_index": state(False)}
            },
            "#embedding": {"float_list": {"vector_index": {"enabled": True, "config": config}}},
            "met in a record": {"int": {"int_inverted_index": state(True)}},
            **(keys or {}),
        },
    }


UNINDEXED = {"title": {"string": {"string_inverted_index": {"enabled": False, "config": {}}}}}


def test_a_server_before_version_1_takes_index_settings_from_metadata() -> None:
    source = definition(
        metadata={"about": "x", "hnsw:M": 99, "hnsw:search_ef": 7, "hnsw:num_threads": 3},
        configuration={"hnsw": HNSW, "embedding_function": {"type": "legacy"}},
        schema=schema(hnsw={"batch_size": 50, "num_threads": 4}),
    )
    (body,) = creation_requests(source, before_version_1=True)
    assert body["metadata"] == {
        "hnsw:space": "cosine",
        "hnsw:construction_ef": 150,
        # The metadata was changed since, which the server does not go by.
        "hnsw:M": 24,
        "hnsw:search_ef": 100,
        "hnsw:batch_size": 50,
        "hnsw:num_threads": 3,
        "about": "x",
    }
    assert body.keys() == {"name", "metadata", "get_or_create"}


def test_what_needs_no_saying_leaves_no_metadata_on_a_server_before_version_1() -> None:
    plain = definition(
        configuration={"hnsw": DEFAULTS},
        schema=schema(hnsw={"batch_size": 100, "num_threads": 64}),
    )
    (body,) = creation_requests(plain, before_version_1=True)
    assert body["metadata"] is None


def test_what_a_server_before_version_1_reports_is_no_configuration() -> None:
    source = definition(
        metadata={"hnsw:space": "ip", "hnsw:M": 20},
        configuration={"hnsw_configuration": {"space": "l2", "_type": "x"}, "_type": "y"},
    )
    (body,) = creation_requests(source, before_version_1=False)
    assert body["metadata"] == {"hnsw:space": "ip", "hnsw:M": 20}
    assert body["configuration"] == {"hnsw": {"space": "ip", "max_neighbors": 20}}
    (plain,) = creation_requests(definition(), before_version_1=False)
    assert (plain["metadata"], plain["configuration"]) == (None, {"hnsw": {"space": "l2"}})


def test_a_schema_that_says_something_goes_first_and_alone() -> None:
    configuration = {"hnsw": None, "spann": {"space": "ip"}, "embedding_function": None}
    said = schema(keys=UNINDEXED)
    source = definition(configuration=configuration, schema=said, metadata={"hnsw:M": 20})
    first, second = creation_requests(source, before_version_1=False)
    assert (first["schema"], "configuration" in first) == (said, False)
    assert (second["configuration"], "schema" in second) == ({"spann": {"space": "ip"}}, False)
    assert first["get_or_create"]
    assert second["get_or_create"]


def test_a_schema_that_says_nothing_is_told_as_a_configuration() -> None:
    source = definition(
        configuration={"hnsw": HNSW, "embedding_function": {"type": "known", "name": "default"}},
        schema=schema(hnsw={"batch_size": 50, "num_threads": 3, "max_neighbors": 24}),
    )
    (body,) = creation_requests(source, before_version_1=False)
    assert "schema" not in body
    assert body["configuration"] == {
        "hnsw": {**HNSW, "batch_size": 50, "num_threads": 3},
        "embedding_function": {"type": "known", "name": "default"},
    }


@pytest.mark.parametrize(
    ("source", "target", "write"),
    [
        (None, None, None),
        (None, {"a": 1}, {}),
        ({"a": 1}, None, {"a": 1}),
        ({"a": 1}, {"a": 1.0}, {"a": 1}),
        ({"a": 1}, {"a": True}, {"a": 1}),
        ({"a": [1, "x"]}, {"a": [1, "x"]}, None),
        ({"a": [1, "x"]}, {"a": [1]}, {"a": [1, "x"]}),
        # As a server gives it back.
        ({"a": 2.2250738585072014e-3}, {"a": 2.225073858507202e-3}, None),
        ({"a": 0.1}, {"a": 0.100001}, {"a": 0.1}),
        # No index changes afterwards.
        ({"hnsw:M": 9}, {"hnsw:space": "l2"}, None),
        ({"hnsw:M": 9, "a": 1}, {"hnsw:space": "l2"}, {"a": 1}),
    ],
)
def test_metadata_is_written_only_where_it_differs(
    source: Metadata | None, target: Metadata | None, write: Metadata | None
) -> None:
    wanted, present = definition(metadata=source), definition(metadata=target)
    assert metadata_to_write(wanted, present) == write


# What is lost ---------------------------------------------------------------------------------


def known(name: str, **config: Any) -> dict[str, Any]:
    return {"embedding_function": {"type": "known", "name": name, "config": config}}


@pytest.mark.parametrize(
    ("wanted", "got", "lines"),
    [
        # However a server tells it, and whatever it fills in.
        ({}, {}, []),
        ({}, {"configuration": {"hnsw": DEFAULTS}, "schema": schema(hnsw=DEFAULTS)}, []),
        ({"configuration": {"hnsw": DEFAULTS}, "schema": schema(hnsw=DEFAULTS)}, {}, []),
        (
            {},
            {"configuration": {"hnsw": DEFAULTS | {"ef_search": 9}}},
            ["hnsw ef_search is 100 on the source, 9 on the target"],
        ),
        ({"configuration": {"hnsw": HNSW}, "schema": schema(hnsw=HNSW)}, "itself", []),
        (
            {"configuration": {"hnsw": HNSW}},
            {"metadata": {"hnsw:space": "cosine", "hnsw:construction_ef": 150, "hnsw:M": 24}},
            [],
        ),
        (
            {"metadata": {"hnsw:space": "cosine", "hnsw:construction_ef": 150, "hnsw:M": 24}},
            {"configuration": {"hnsw": HNSW}, "schema": schema(hnsw=HNSW)},
            [],
        ),
        ({"configuration": {"embedding_function": {"type": "legacy"}}}, {}, []),
        ({"schema": schema()}, {"schema": None}, []),
        ({"schema": None}, {"schema": schema(keys=UNINDEXED)}, []),
        ({"schema": schema(hnsw={"num_threads": 8})}, {"schema": schema(hnsw={})}, []),
        ({}, {"metadata": {"more": 1}, "configuration": known("default")}, []),
        # Each thing that may be lost.
        (
            {"configuration": {"hnsw": HNSW | {"ef_search": 200}}},
            {"metadata": {"hnsw:search_ef": 50, "hnsw:space": "ip"}},
            [
                "hnsw ef_construction is 150 on the source, 100 on the target",
                "hnsw ef_search is 200 on the source, 50 on the target",
                "hnsw max_neighbors is 24 on the source, 16 on the target",
                "space is cosine on the source, ip on the target",
            ],
        ),
        (
            {"metadata": {"hnsw:num_threads": 3}, "schema": schema(hnsw={"batch_size": 50})},
            {},
            [
                "hnsw batch_size is 50 on the source, 100 on the target",
                "hnsw num_threads is 3 on the source, not set on the target",
            ],
        ),
        (
            {"configuration": {"spann": {"space": "l2", "search_nprobe": 9}}},
            {"configuration": {"hnsw": HNSW}},
            [
                "space is l2 on the source, cosine on the target",
                "the index is spann on the source, hnsw on the target",
            ],
        ),
        (
            {"configuration": {"spann": {"space": "l2", "search_nprobe": 9, "max_neighbors": 5}}},
            {"configuration": {"spann": {"space": "l2", "search_nprobe": 8}}},
            [
                "spann max_neighbors is 5 on the source, not set on the target",
                "spann search_nprobe is 9 on the source, 8 on the target",
            ],
        ),
        (
            {"metadata": {"a": 1, "b": "x" * 99, "c": 1, "d": 0.1}},
            {"metadata": {"c": True, "d": 0.1}},
            [
                "metadata 'a' is 1 on the source, missing on the target",
                f"metadata 'b' is '{'x' * 56}... on the source, missing on the target",
                "metadata 'c' is 1 on the source, True on the target",
            ],
        ),
        (
            {"configuration": known("openai", model="a")},
            {"configuration": {}},
            ["the embedding function is 'openai' on the source, None on the target"],
        ),
        (
            {"configuration": known("openai", model="a")},
            {"configuration": known("openai", model="b")},
            ["the embedding function 'openai' is configured otherwise on the target"],
        ),
        (
            {"schema": schema(keys=UNINDEXED)},
            {"schema": None},
            [
                "schema: string_inverted_index of 'title' is disabled on the source, "
                "enabled on the target"
            ],
        ),
        (
            {"schema": schema()},
            {"schema": schema(keys=UNINDEXED)},
            [
                "schema: string_inverted_index of 'title' is enabled on the source, "
                "disabled on the target"
            ],
        ),
        (
            {"schema": schema(int={"int_inverted_index": {"enabled": False, "config": {}}})},
            {"schema": None},
            [
                "schema: int_inverted_index of every key is disabled on the source, "
                "enabled on the target"
            ],
        ),
        (
            {
                "schema": schema(
                    keys={
                        "sparse": {
                            "sparse_vector": {
                                "sparse_vector_index": {"enabled": True, "config": {"bm25": True}}
                            }
                        }
                    }
                )
            },
            {"schema": schema()},
            [
                "schema: sparse_vector_index of 'sparse' is enabled with {\"bm25\": true} "
                "on the source, disabled on the target"
            ],
        ),
        (
            {"schema": schema() | {"cmek": {"gcp": "name"}}},
            {"schema": schema()},
            ["schema: the encryption key of the source is not set on the target"],
        ),
    ],
)
def test_what_a_target_does_not_have_of_a_definition(
    wanted: dict[str, Any], got: dict[str, Any] | str, lines: list[str]
) -> None:
    source = definition(**wanted)
    target = source if isinstance(got, str) else definition(**got)
    assert sorted(losses(source, target)) == lines


def test_a_kind_of_value_that_a_target_does_not_know_is_no_loss_before_it_is_used() -> None:
    index = {"set_index": {"enabled": True, "config": {}}}
    newer = definition(schema=schema(keys={"k": {"set": index}}, set=index))
    assert losses(newer, definition(schema=schema())) == []
    wanted = definition(
        schema=schema(keys={"k": {"set": {"set_index": {"enabled": False}}}}, set=index)
    )
    assert losses(wanted, newer) == [
        "schema: set_index of 'k' is disabled on the source, enabled on the target"
    ]


def test_keys_that_a_server_may_refuse_are_tried_first_and_then_left_out() -> None:
    metadata = {"": 1, "#a": 2, "$b": 3, "c#": 4}
    source = definition(metadata=metadata)
    told = [body["metadata"] for body in creation_requests(source, before_version_1=False)]
    assert told == [metadata, {"c#": 4}]
    modifications = modification_requests(definition(), name=None, metadata=metadata)
    assert [body["new_metadata"] for body in modifications] == [metadata, {"c#": 4}]
    (only,) = modification_requests(definition(), name="new", metadata={"c#": 4})
    assert only == {"new_name": "new", "new_metadata": {"c#": 4}}
    (first, _) = losses(source, definition(metadata={"#a": 2, "c#": 4}))
    assert first == "metadata '' is 1 on the source, missing on the target"
