"""Definitions carried from one server to another: what no server of the contract suite can show."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from tasks.records import Metadata
from tasks.stores.base import Collection
from tasks.stores.definitions import creation_requests, metadata_to_write


def definition(**fields: Any) -> Collection:
    empty: dict[str, Any] = {"metadata": None, "configuration": {}, "schema": None}
    return Collection(id=UUID(int=1), name="books", dimension=3, **(empty | fields))


def test_a_server_before_version_1_takes_index_settings_from_metadata() -> None:
    source = definition(
        metadata={"about": "x", "hnsw:M": 99},
        configuration={
            "hnsw": {"space": "cosine", "max_neighbors": 24, "ef_construction": 150},
            "embedding_function": {"type": "legacy"},
        },
        schema={"keys": {}, "defaults": {}},
    )
    (body,) = creation_requests(source, server_version="0.6.3")
    assert body["metadata"] == {
        "hnsw:space": "cosine",
        "hnsw:construction_ef": 150,
        "hnsw:M": 99,  # what the source says in its metadata goes first
        "about": "x",
    }
    assert body.keys() == {"name", "metadata", "get_or_create"}


def test_what_a_server_before_version_1_reports_is_no_configuration() -> None:
    source = definition(
        metadata={"hnsw:space": "ip"},
        configuration={"hnsw_configuration": {"space": "l2", "_type": "x"}, "_type": "y"},
    )
    (body,) = creation_requests(source, server_version="1.0.0")
    assert body["metadata"] == {"hnsw:space": "ip"}
    assert body["configuration"] is None
    (plain,) = creation_requests(definition(), server_version="1.0.0")
    assert (plain["metadata"], plain["configuration"]) == (None, None)


def test_a_schema_goes_first_and_alone() -> None:
    configuration = {"hnsw": None, "spann": {"space": "ip"}, "embedding_function": None}
    source = definition(configuration=configuration, schema={"keys": {}})
    first, second = creation_requests(source, server_version="1.0.0")
    assert (first["schema"], "configuration" in first) == ({"keys": {}}, False)
    assert (second["configuration"], "schema" in second) == ({"spann": {"space": "ip"}}, False)
    assert first["get_or_create"]
    assert second["get_or_create"]


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
