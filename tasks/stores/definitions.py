"""Requests that make a collection from another's definition, or change it. Pure."""

from __future__ import annotations

import math
from typing import Any

from tasks.compare import METADATA_TOLERANCE
from tasks.records import Metadata
from tasks.stores.base import Collection

_INDEX_KEYS = {  # a configuration's name for a setting, and metadata's
    "space": "hnsw:space",
    "ef_construction": "hnsw:construction_ef",
    "max_neighbors": "hnsw:M",
    "ef_search": "hnsw:search_ef",
    "num_threads": "hnsw:num_threads",
    "batch_size": "hnsw:batch_size",
    "sync_threshold": "hnsw:sync_threshold",
    "resize_factor": "hnsw:resize_factor",
}
_METADATA_KEYS = frozenset(_INDEX_KEYS.values())


def metadata_to_write(source: Collection, target: Collection) -> Metadata | None:
    """What `Store.modify` makes the target's metadata say the same by; `None` if it does already.

    The index settings among it do not count: no server changes an index afterwards.
    """
    wanted, present = _about_no_index(source.metadata), _about_no_index(target.metadata)
    return None if _alike(wanted, present) else wanted


def modification_request(
    collection: Collection, *, name: str | None, metadata: Metadata | None
) -> dict[str, Any]:
    """The body that renames a collection or replaces its metadata; `None` leaves as is."""
    body: dict[str, Any] = {}
    if name is not None:
        body["new_name"] = name
    if metadata is not None:
        given = collection.metadata or {}
        index = {key: value for key, value in given.items() if key in _METADATA_KEYS}
        # An empty object is refused or ignored; a value of None is a key that is not there.
        body["new_metadata"] = {**_about_no_index(metadata), **index} or {"none": None}
    return body


def _about_no_index(metadata: Metadata | None) -> Metadata:
    return {key: value for key, value in (metadata or {}).items() if key not in _METADATA_KEYS}


def _alike(one: Any, other: Any) -> bool:
    """Equal, with 1, 1.0 and True apart, and as equal as floats come back from a server."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=METADATA_TOLERANCE)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)


def creation_requests(definition: Collection, *, server_version: str) -> list[dict[str, Any]]:
    """The bodies to try in turn, the most faithful first; a server refuses what it does not know.

    Each gives the collection as it is if one of that name is there.
    """
    metadata = definition.metadata or {}
    index = definition.configuration.get("hnsw") or definition.configuration.get("spann") or {}
    common = {"name": definition.name, "metadata": metadata or None, "get_or_create": True}
    if server_version.startswith("0."):
        # Takes no index settings but from the metadata, and ignores others without a word.
        settings = {
            key: index[name] for name, key in _INDEX_KEYS.items() if index.get(name) is not None
        }
        return [{**common, "metadata": {**settings, **metadata} or None}]
    function = definition.configuration.get("embedding_function")
    function_only = {"embedding_function": function} if function else None
    if not _METADATA_KEYS.isdisjoint(metadata):
        # To the server these are a configuration: it refuses a schema beside them, and takes from
        # them more than the configuration that it reports holds (threads, batch size).
        return [{**common, "configuration": function_only}]
    bodies = []
    if definition.schema:
        # It holds everything that the configuration does; both at once are refused.
        bodies.append({**common, "schema": definition.schema})
    kinds = ("hnsw", "spann")
    given = {key: value for key in kinds if (value := definition.configuration.get(key))}
    bodies.append({**common, "configuration": {**given, **(function_only or {})} or None})
    return bodies
