"""What a Chroma server answers, turned into our own types. Pure, as seen from outside.

Everything here raises `KeyError`, `TypeError` or `ValueError` on an answer that is not what the API
promises; the store turns those into `StoreGarbled`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import repeat
from typing import Any
from uuid import UUID

import orjson

from tasks.records import Metadata, RecordBatch
from tasks.stores.base import Collection
from tasks.vectors import Vectors, array_of, texts_between


def collection(answer: Any) -> Collection:
    """The definition of one collection."""
    return Collection(
        id=UUID(answer["id"]),
        name=_typed(answer["name"], str),
        dimension=_typed(answer.get("dimension"), int, type(None)),
        metadata=_typed(answer.get("metadata"), dict, type(None)) or None,
        configuration=_typed(answer.get("configuration_json"), dict, type(None)) or {},
        schema=_typed(answer.get("schema"), dict, type(None)) or None,
    )


def ids(answer: Any) -> list[str]:
    """The ids of a `get`, in the server's order."""
    return _ids(answer["ids"])


def neighbours(answer: Any, count: int) -> list[list[str]]:
    """The ids of a `query` with `count` vectors."""
    rows = answer["ids"]
    if len(rows) != count:
        raise ValueError(f"{len(rows)} lists of ids for {count} vectors")
    return [_ids(row) for row in rows]


def records(
    data: bytes,
    wanted: Sequence[str],
    *,
    shortest: bool = False,
    parsing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> RecordBatch:
    """The records of a `get` with everything, put in the order of `wanted`.

    The server answers in the order of its rows. Ids of `wanted` that are not in the answer are
    left out, and one that is named twice is given once. For `shortest` and `parsing` see
    `Vectors.written`.
    """
    answer, vectors = _parsed(data, shortest, parsing)
    given = ids(answer)
    size = len(given)
    if len(vectors) != size:
        raise ValueError(f"{len(vectors)} embeddings for {size} ids")
    documents = _column(answer.get("documents"), size, str)
    uris = _column(answer.get("uris"), size, str)
    metadatas = [
        # A record without metadata reads back as null or as {}. A value of null is what is left of
        # a float that JSON cannot write, and cannot be told from no value.
        metadata if metadata and None not in metadata.values() else _without_null(metadata)
        for metadata in _column(answer.get("metadatas"), size, dict)
    ]
    batch = RecordBatch(
        ids=given, vectors=vectors, documents=documents, metadatas=metadatas, uris=uris
    )
    if given == wanted:
        return batch
    row_of = {id_: row for row, id_ in enumerate(given)}
    if len(row_of) != size:
        raise ValueError("an id is answered twice")
    order = [row for id_ in wanted if (row := row_of.pop(id_, None)) is not None]
    if row_of:
        raise ValueError(f"{len(row_of)} records that were not asked for")
    return batch.take(order)


def joined(parts: Sequence[RecordBatch]) -> RecordBatch:
    """All the records of these batches, in order."""
    if len(parts) == 1:
        return parts[0]
    return RecordBatch(
        ids=[id_ for part in parts for id_ in part.ids],
        vectors=Vectors.joined([part.vectors for part in parts]),
        documents=[document for part in parts for document in part.documents],
        metadatas=[metadata for part in parts for metadata in part.metadatas],
        uris=[uri for part in parts for uri in part.uris],
    )


def _ids(values: Any) -> list[str]:
    if not isinstance(values, list) or not set(map(type, values)) <= {str}:
        raise TypeError("ids are no list of strings")
    return values


def _parsed(
    data: bytes, shortest: bool, parsing: Callable[[], AbstractContextManager[None]]
) -> tuple[dict[str, Any], Vectors]:
    # An answer is mostly vectors: they are cut out before the rest is parsed. No string can hold
    # these marks, since it would have its quotes escaped. Should they ever be somewhere else than
    # around the vectors, then what is between them are not as many texts as there are ids.
    start, end = data.find(b'"embeddings":[['), data.rfind(b']],"documents":')
    if 0 < start < end:
        before, after = start + len('"embeddings":'), end + len("]]")
        texts = texts_between(data, before + len("[["), end)
        with suppress(KeyError, TypeError, ValueError):
            rest = orjson.loads(b"".join((data[:before], b"null", data[after:])))
            if len(ids(rest)) == len(texts):
                return rest, Vectors.written(texts, shortest=shortest, parsing=parsing)
    try:
        answer = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        beginning = data[:80].decode(errors="replace")
        raise ValueError(f"it is no JSON ({error}); it begins with {beginning!r}") from None
    return answer, Vectors.of(array_of(answer["embeddings"]))


def _column(values: Any, size: int, kind: type) -> list[Any]:
    if values is None:
        return list(repeat(None, size))
    if not isinstance(values, list) or len(values) != size:
        raise ValueError(f"a column does not match {size} ids")
    if not set(map(type, values)) <= {kind, type(None)}:
        raise TypeError(f"a column holds something else than {kind.__name__}")
    return values


def _without_null(metadata: Metadata | None) -> Metadata | None:
    return {key: value for key, value in (metadata or {}).items() if value is not None} or None


def _typed(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"{value!r:.80} where {kinds[0].__name__} is expected")
    return value
