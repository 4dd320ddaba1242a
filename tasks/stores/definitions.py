"""A collection's definition: carried to another server, and what is lost on the way. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from tasks.compare import METADATA_TOLERANCE
from tasks.records import Metadata
from tasks.stores.base import Collection

Schema = dict[str, Any]

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
_HNSW_DEFAULTS = {  # the same from 0.6.3 to 1.5.9, which does not report all of them
    "space": "l2",
    "ef_construction": 100,
    "max_neighbors": 16,
    "ef_search": 100,
    "batch_size": 100,
    "sync_threshold": 1000,
    "resize_factor": 1.2,
}
_ON, _OFF = {"enabled": True}, {"enabled": False}
_STANDARD_SCHEMA: Schema = {  # what servers do that have none, and 1.5.9 where it is not told
    "defaults": {
        "string": {"fts_index": _OFF, "string_inverted_index": _ON},
        "float_list": {"vector_index": _OFF},
        "sparse_vector": {"sparse_vector_index": _OFF},
        "int": {"int_inverted_index": _ON},
        "float": {"float_inverted_index": _ON},
        "bool": {"bool_inverted_index": _ON},
    },
    "keys": {
        "#document": {"string": {"fts_index": _ON, "string_inverted_index": _OFF}},
        "#embedding": {"float_list": {"vector_index": _ON}},
    },
}
_DISABLED = "disabled"
_SHOWN = 60  # characters of a value


def metadata_to_write(source: Collection, target: Collection) -> Metadata | None:
    """What `Store.modify` makes the target's metadata say the same by; `None` if it does already.

    The index settings among it do not count: no server changes an index afterwards.
    """
    wanted, present = without_index(source.metadata), without_index(target.metadata)
    return None if _alike(wanted, present) else wanted


def modification_requests(
    collection: Collection, *, name: str | None, metadata: Metadata | None
) -> list[dict[str, Any]]:
    """The bodies to try in turn that rename a collection or replace its metadata; `None` leaves as
    is."""
    body = {"new_name": name} if name is not None else {}
    if metadata is None:
        return [body]
    given = collection.metadata or {}
    index = {key: value for key, value in given.items() if key in _METADATA_KEYS}
    return [
        # An empty object is refused or ignored; a value of None is a key that is not there.
        {**body, "new_metadata": {**without_index(told), **index} or {"none": None}}
        for told in _as_far_as_taken(metadata)
    ]


def _as_far_as_taken(metadata: Metadata) -> list[Metadata]:
    """All of it, and then what is left without the keys that servers from 1.0 on refuse."""
    taken = {key: value for key, value in metadata.items() if key and key[0] not in "#$"}
    return [metadata] if len(taken) == len(metadata) else [metadata, taken]


def without_index(metadata: Metadata | None) -> Metadata:
    """What metadata says besides the index settings in it."""
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


def creation_requests(definition: Collection, *, before_version_1: bool) -> list[dict[str, Any]]:
    """The bodies to try in turn, the most faithful first; a server refuses what it does not know.

    Each gives the collection as it is if one of that name is there.
    """
    metadata = definition.metadata or {}
    kind, settings = _index(definition)
    common = {"name": definition.name, "metadata": metadata or None, "get_or_create": True}
    if before_version_1:
        # Takes no index settings but from the metadata, and ignores others without a word.
        chosen = {
            key: settings[name]
            for name, key in _INDEX_KEYS.items()
            if name in settings and (key in metadata or settings[name] != _HNSW_DEFAULTS.get(name))
        }
        return [{**common, "metadata": {**metadata, **chosen} or None}]
    function = definition.configuration.get("embedding_function")
    index = {kind: {**(_vector_index(definition.schema).get(kind) or {}), **settings}}
    configured = {
        **common,
        "configuration": {**index, "embedding_function": function} if function else index,
    }
    # A schema is refused beside a configuration, and beside index settings in the metadata. One
    # that says nothing by itself is told whole by the configuration; and given such a schema, 1.5.9
    # forgets the default embedding function.
    schema = definition.schema or {}
    told = [configured]
    if any(_schema_losses(schema, {})):
        told = [{**common, "schema": schema}, configured]
    return [
        {**body, "metadata": taken or None} for taken in _as_far_as_taken(metadata) for body in told
    ]


def losses(wanted: Collection, got: Collection) -> list[str]:
    """What a target's collection does not have of the definition `wanted`, one line for each thing.

    What a server fills in by itself is no loss, nor is what the target has beyond that. Whether an
    index setting is told as metadata, configuration or schema makes no difference.
    """
    return [
        *_index_losses(wanted, got),
        *_metadata_losses(wanted, got),
        *_function_losses(wanted, got),
        *_schema_losses(wanted.schema or {}, got.schema or {}),
    ]


def _index_losses(wanted: Collection, got: Collection) -> Iterator[str]:
    (kind, settings), (other_kind, others) = _index(wanted), _index(got)
    if kind != other_kind:
        yield _differs("the index", kind, other_kind)
        settings = {"space": wanted.space}
    elif kind == "hnsw":
        settings, others = {**_HNSW_DEFAULTS, **settings}, {**_HNSW_DEFAULTS, **others}
    for name, value in settings.items():
        if value != others.get(name):
            what = name if name == "space" else f"{kind} {name}"
            yield _differs(what, value, others.get(name, "not set"))


def _metadata_losses(wanted: Collection, got: Collection) -> Iterator[str]:
    present = without_index(got.metadata)
    for key, value in sorted(without_index(wanted.metadata).items()):
        if key not in present:
            yield _differs(f"metadata {key!r}", repr(value), "missing")
        elif not _alike(value, present[key]):
            yield _differs(f"metadata {key!r}", repr(value), repr(present[key]))


def _function_losses(wanted: Collection, got: Collection) -> Iterator[str]:
    function, other = (one.configuration.get("embedding_function") or {} for one in (wanted, got))
    name, other_name = function.get("name"), other.get("name")  # others than known ones have none
    if name and name != other_name:
        yield _differs("the embedding function", repr(name), repr(other_name or None))
    elif name and function.get("config") != other.get("config"):
        yield f"the embedding function {name!r} is configured otherwise on the target"


def _schema_losses(wanted: Schema, got: Schema) -> Iterator[str]:
    for kind, name in sorted(_kinds(wanted.get("defaults"))):
        one, other = _state(wanted, None, kind, name), _state(got, None, kind, name)
        # A server that does not know this kind of value holds none of it either.
        if other is not None and one != other:
            yield _differs(f"schema: {name} of every key", one, other)
    keys, other_keys = wanted.get("keys") or {}, got.get("keys") or {}
    for key in sorted(keys.keys() | other_keys.keys()) if wanted else ():
        for kind, name in sorted(_kinds(keys.get(key)) | _kinds(other_keys.get(key))):
            one, other = _state(wanted, key, kind, name), _state(got, key, kind, name)
            # Keys that records brought along are as every key is, and need not be there yet.
            by_default = (_state(wanted, None, kind, name), _state(got, None, kind, name))
            if one != other and (one, other) != by_default:
                yield _differs(f"schema: {name} of {key!r}", one or _DISABLED, other or _DISABLED)
    if wanted.get("cmek") and wanted["cmek"] != got.get("cmek"):
        yield "schema: the encryption key of the source is not set on the target"


def _index(definition: Collection) -> tuple[str, dict[str, Any]]:
    """The kind of the vector index and its settings, as far as the definition tells them.

    The configuration is what the server goes by, the schema what it does not report there; servers
    before 1.0 go by the metadata.
    """
    kind = "spann" if definition.configuration.get("spann") else "hnsw"
    metadata = definition.metadata or {}
    in_metadata = {name: metadata.get(key) for name, key in _INDEX_KEYS.items() if kind == "hnsw"}
    in_schema = dict(_vector_index(definition.schema).get(kind) or {})
    in_schema.pop("num_threads", None)  # the cores of the server's machine, unless one chose them
    told = (in_metadata, in_schema, definition.configuration.get(kind) or {})
    known = {name: value for part in told for name, value in part.items() if value is not None}
    return kind, {**known, "space": definition.space}


def _vector_index(schema: Schema | None) -> dict[str, Any]:
    of_key = ((schema or {}).get("keys") or {}).get("#embedding") or {}
    index = (of_key.get("float_list") or {}).get("vector_index") or {}
    return index.get("config") or {}


def _state(schema: Schema, key: str | None, kind: str, name: str) -> str | None:
    """Whether an index is enabled for a key, or for every key, and how; None if it is unknown."""
    for known in (schema, _STANDARD_SCHEMA):
        keys = (known.get("keys") or {}).get(key) or {} if key else {}
        for place in (keys, known.get("defaults") or {}):
            index = (place.get(kind) or {}).get(name)
            if index is not None:
                return _enabled(index, name)
    return None


def _enabled(index: dict[str, Any], name: str) -> str:
    if not index.get("enabled"):
        return _DISABLED
    config = {key: value for key, value in (index.get("config") or {}).items() if value is not None}
    if name == "vector_index":
        for told in ("space", "hnsw", "spann", "embedding_function"):  # by the configuration too
            config.pop(told, None)
        if config.get("source_key") == "#document":  # so it is where none is named
            del config["source_key"]
    return f"enabled with {json.dumps(config, sort_keys=True)}" if config else "enabled"


def _kinds(of_key: Schema | None) -> set[tuple[str, str]]:
    return {(kind, name) for kind, indexes in (of_key or {}).items() for name in indexes or {}}


def _differs(what: str, one: object, other: object) -> str:
    return f"{what} is {_short(one)} on the source, {_short(other)} on the target"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
